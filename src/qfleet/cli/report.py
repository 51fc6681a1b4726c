"""`qfleet report` and `qfleet watch`: runs as a page, once or as they go."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples

if TYPE_CHECKING:
    from qfleet.report.live import Server

REPORT_EXAMPLES = examples(
    "qfleet report runs/cartpole", "qfleet report runs/serial runs/fleet --out report.html", "qfleet report runs/*"
)
WATCH_EXAMPLES = examples("qfleet watch runs/fleet", "qfleet watch runs/fleet --port 9000")
RunsArgument = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Run directories; a series or a comparison stands for its runs.")
]


def add_to(app: typer.Typer) -> None:
    """Put both commands into the command line."""
    app.command("report", epilog=REPORT_EXAMPLES)(report)
    app.command("watch", epilog=WATCH_EXAMPLES)(watch)


def report(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page goes.")] = Path("report.html"),
    frames: Annotated[bool, typer.Option("--frames/--no-frames", help="Show the best policy at play.")] = True,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Sum up runs in one HTML file that needs no network: curves, tables, time, lags, restarts, settings, machines.

    Runs of one configuration are taken together, whatever their seeds.
    """
    from qfleet.report.make import make_report
    from qfleet.report.page import report_page, state_of, title_of
    from qfleet.storage import write_file

    console = Output(as_json, quiet)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames need no window, and no word about there being none
    command = shlex.join(["qfleet", "report", *map(str, runs), "--out", str(out)])
    made = make_report(runs, has_film=frames, command=command)
    write_file(out.parent, out.name, report_page(made).encode(), chosen_by="--out")
    for one in made.unreadable:
        console.note(f"left out: {one.path}: {one.why}")
    if isinstance(made.film, str):
        console.note(f"no frames: {made.film}")
    console.say(title_of(made))
    console.say(state_of(made))
    result = {
        "out": str(out),
        "runs": len(made.runs),
        "configurations": [group.label for group in made.groups],
        "left_out": [{"run": str(one.path), "why": one.why} for one in made.unreadable],
    }
    console.result(result, str(out))
    return 0


def watch(
    runs: RunsArgument,
    port: Annotated[int, typer.Option(metavar="P", min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 8686,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Serve the report of runs under way on this machine, renewed as they go; Ctrl-C ends it, and leaves them running.

    It reads the run directories only.
    """
    from qfleet.report.live import Server, Watch

    console = Output(as_json, quiet)
    watched = Watch(runs)
    watched.page()  # what cannot be read is said at once
    server = Server(watched, port)
    return serve(server, lambda: console.result({"url": server.url}, f"{server.url} (Ctrl-C ends it)"))


def serve(server: Server, on_ready: Callable[[], None] = lambda: None) -> int:
    """Until Ctrl-C or SIGTERM; returns the exit code.

    Args:
        server: who answers.
        on_ready: called once a signal ends it cleanly.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs behind it deaf to Ctrl-C
            signal.signal(number, signal.default_int_handler)
    try:
        on_ready()
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.watch.is_over.set()
        server.server_close()
    return 0
