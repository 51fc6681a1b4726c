"""The same application as a Ray Serve deployment, for those who already run Ray: `qfleet serve --engine ray`.

Each replica holds the model and makes batches of the requests that reach it; Ray's proxy spreads them. Replicas read
the model from the bytes that the deployment was made with, so they may live on any machine of the cluster.
"""

from __future__ import annotations

import dataclasses
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from qfleet.errors import MissingExtraError, UsageError
from qfleet.serving.app import ServingApp
from qfleet.serving.settings import Settings

APPLICATION = "qfleet"


def build_application(settings: Settings, content: bytes) -> Any:
    """A Ray Serve application with `settings.num_workers` replicas.

    Raises:
        MissingExtraError: ray[serve] is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("--engine ray needs ray[serve]: pip install 'qfleet[ray-serve]'") from error

    def build() -> ServingApp:
        """In the replica's own process, for the application holds locks and tasks of its event loop."""
        path = Path(tempfile.mkdtemp(prefix="qfleet-replica-")) / "policy.onnx"
        path.write_bytes(content)
        return ServingApp(dataclasses.replace(settings, model=str(path), run=None))

    @serve.deployment(name="policy", num_replicas=settings.num_workers, max_ongoing_requests=settings.max_queue)
    @serve.ingress(build)
    class Policy:  # what the decorators make of it is no class any more
        """Ray's handle on the application."""

    deployment: Any = Policy
    return deployment.bind()


def serve_on_ray(settings: Settings, say: Callable[[str], None]) -> None:
    """Deploy and wait until SIGTERM or Ctrl-C; then take the deployment away again.

    Raises:
        MissingExtraError: ray[serve] is not installed.
        UsageError: an option that belongs to Ray's own configuration.
    """
    if settings.watch or settings.tls_cert is not None:
        raise UsageError("--engine ray takes neither --watch nor --tls-cert: deploy anew, and let Ray's proxy do TLS")
    application = build_application(settings, Path(settings.model).read_bytes())
    import ray
    from ray import serve

    was_running = ray.is_initialized()
    if not was_running:
        ray.init(log_to_driver=False, include_dashboard=False)
    serve.start(http_options={"host": settings.host, "port": settings.port})
    serve.run(application, name=APPLICATION, route_prefix="/")
    say(f"serving on http://{settings.host}:{settings.port} by {settings.num_workers} replicas (Ctrl-C stops)")
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stopped.wait()
    finally:
        serve.delete(APPLICATION)
        if not was_running:
            serve.shutdown()
            ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
