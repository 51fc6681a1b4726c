"""Ray Serve's own micro-batching in front of an exported policy, as its documentation writes it. Peer of qfleet serve.

Prints "ready PORT" once it answers; stops at SIGTERM. Run with a Python that has ray[serve] and onnxruntime.
"""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256)
class Policy:
    """One replica: the network in onnxruntime, one thread, batches of up to 64 that wait for at most 2 ms."""

    def __init__(self, content: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def act(self, observations: list[list[float]]) -> list[int]:
        _, actions = self.session.run(None, {"obs": np.asarray(observations, np.float32)})
        return actions.tolist()

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        return {"action": await self.act(body["obs"])}


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(sys.argv[1], "rb") as file:  # noqa: PTH123
        content = file.read()
    ray.init(log_to_driver=False, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Policy.bind(content), route_prefix="/")
    print(f"ready {port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
