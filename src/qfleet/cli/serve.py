"""`qfleet serve`: a policy over HTTP."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qfleet.cli.console import DebugOption, Output, QuietOption, examples
from qfleet.errors import MissingExtraError, UsageError
from qfleet.run_dir import refuse_others

if TYPE_CHECKING:
    from qfleet.serving.settings import Settings

EXAMPLES = examples(
    "qfleet serve runs/acrobot",
    "qfleet serve acrobot.onnx --host 0.0.0.0 --token-file token.txt --tls-cert cert.pem --tls-key key.pem",
    "qfleet serve --watch runs/acrobot --workers 4",
)
ENGINES = ("uvicorn", "ray")


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("serve", epilog=EXAMPLES)(serve)


def serve(
    policy: Annotated[Path | None, typer.Argument(metavar="[RUN|FILE.onnx]", help="What to serve.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; others than this machine need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the token that clients must show.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Serve HTTPS with this certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its key.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Observations in one inference, or request.")] = 64,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="How long a request waits for others while an inference runs.")
    ] = 2.0,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes on the port.")] = 1,
    watch: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Follow this run: serve each new best policy.")
    ] = None,
    engine: Annotated[str, typer.Option(help="uvicorn, or ray: as a deployment of Ray Serve.")] = "uvicorn",
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen for others without a token.")] = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Serve a policy over HTTP: POST /v1/act gives the action of an observation; / is a page to try it."""
    try:
        from qfleet.serving.settings import MIN_QUEUE, Settings, read_token, require_safe
    except ImportError as error:
        raise MissingExtraError(f"qfleet serve needs {error.name}: pip install 'qfleet[serve]'") from error
    if policy is None and watch is None:
        raise UsageError("nothing to serve; name a run or an .onnx file, or follow one with --watch RUN")
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: one of {', '.join(ENGINES)}")
    settings = Settings(
        model="",
        run=None if watch is None else str(watch),
        watch=watch is not None,
        host=host,
        port=port,
        token=None if token_file is None else read_token(token_file),
        tls_cert=None if tls_cert is None else str(tls_cert),
        tls_key=None if tls_key is None else str(tls_key),
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        # The largest request fits several times, also where others wait.
        max_queue=max(MIN_QUEUE, 4 * max_batch),
        num_workers=workers,
    )
    require_safe(settings, insecure=insecure)
    with tempfile.TemporaryDirectory(prefix="qfleet-serve-") as folder:
        settings = prepare_model(settings, policy, watch, Path(folder))
        run_server(settings, engine, Output(False, quiet), Path(folder))
    return 0


def prepare_model(settings: Settings, policy: Path | None, watch: Path | None, folder: Path) -> Settings:
    """The settings with the file that is served: the user's own, or one that a run is exported to.

    Raises:
        UsageError: neither a run nor an .onnx file.
    """
    import asyncio

    from qfleet.serving.reload import export_beside

    if watch is not None:
        refuse_others(watch)
    exported = folder / "policy.onnx"
    if policy is None:
        return dataclasses.replace(settings, model=str(exported))
    if policy.suffix == ".onnx":
        if not policy.is_file():
            raise UsageError(f"{policy}: no such file")
        if watch is None:
            return dataclasses.replace(settings, model=str(policy))
        # The run's policies take the place of a copy, never of the user's file.
        exported.write_bytes(policy.read_bytes())
        return dataclasses.replace(settings, model=str(exported))
    refuse_others(policy)
    asyncio.run(export_beside(str(policy), exported))
    return dataclasses.replace(settings, model=str(exported), run=settings.run or str(policy))


def run_server(settings: Settings, engine: str, out: Output, folder: Path) -> None:
    """Serve until told to stop.

    Raises:
        MissingExtraError: a package is not installed.
        QfleetError: the model cannot be served.
    """
    from qfleet.cli.doctor import usable_cores
    from qfleet.onnx_policy import OnnxPolicy

    try:
        from qfleet.serving.counters import Counters
        from qfleet.serving.logs import set_up_logs
        from qfleet.serving.server import WorkerPool, check_tls, open_socket
        from qfleet.serving.server import serve as serve_here
    except ImportError as error:
        raise MissingExtraError(f"qfleet serve needs {error.name}: pip install 'qfleet[serve]'") from error
    check_tls(settings)
    if Path(settings.model).exists():  # else --watch waits for it
        OnnxPolicy.read(settings.model).check_golden()
    set_up_logs()
    if engine == "ray":
        from qfleet.serving.ray_serve import serve_on_ray

        serve_on_ray(settings, out.say)
        return
    threads = max(1, int(usable_cores()) // settings.num_workers)
    settings = dataclasses.replace(settings, num_threads=threads)
    listener = open_socket(settings)
    port = listener.getsockname()[1]
    scheme = "http" if settings.tls_cert is None else "https"
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    out.say(f"serving on {scheme}://{address}:{port} (Ctrl-C stops)")
    with listener:
        if settings.num_workers == 1:
            serve_here(settings, listener)
        else:
            counters = folder / "counters"
            Counters.make_file(counters, settings.num_workers)
            WorkerPool(dataclasses.replace(settings, counters=str(counters)), listener).run()
