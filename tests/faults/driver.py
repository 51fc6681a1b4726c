"""Runs experiments in processes of their own that can be killed at an exact point; started by test_kill.py.

One process imports everything once and forks a child for each command on its standard input, a JSON object:

    run_dir, env, overrides   a new run; without overrides run_dir is resumed
    kill_at                   the child is killed (-9) at this point; null lets it finish
    file_limit                RLIMIT_FSIZE in bytes; null for none

A point is an event of the run, or the moment before or after a file is synced, renamed or removed. The child stops at
point `kill_at` and its parent kills it there. The answer is a line of JSON: the points passed, exit status, error.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import qfleet.experiment
from qfleet.errors import QfleetError
from qfleet.experiment import Experiment

qfleet.experiment.draw_learning_curve = lambda *args: None


def run_child(command: dict[str, Any], pipe: int) -> None:
    passed = 0

    def point(label: str) -> None:
        nonlocal passed
        os.write(pipe, f"{label}\n".encode())
        while passed == command["kill_at"]:
            signal.pause()
        passed += 1

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            point(f"before {name}")
            answer = original(*args, **kwargs)
            point(f"after {name}")
            return answer

        setattr(owner, name, watched)

    watch(os, "fsync")
    watch(Path, "replace")
    watch(Path, "unlink")
    if command["file_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["file_limit"], resource.RLIM_INFINITY))
    if command["overrides"] is None:
        experiment = Experiment.resume(command["run_dir"])
    else:
        experiment = Experiment.from_recipe(
            command["env"], recipe="vector", run_dir=command["run_dir"], overrides=command["overrides"]
        )
    for event in experiment.stream():
        point(type(event).__name__)


def serve(command: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            run_child(command, writing)
        except QfleetError as error:
            os.write(writing, f"error {type(error).__name__}: {error}\n".encode())
            os._exit(1)
        except BaseException as error:
            os.write(writing, f"error (not ours) {type(error).__name__}: {error}\n".encode())
            os._exit(2)
        os._exit(0)
    os.close(writing)
    points: list[str] = []
    with os.fdopen(reading) as lines:
        for line in lines:
            points.append(line.rstrip("\n"))
            if len(points) - 1 == command["kill_at"]:
                os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    error = points.pop() if points and points[-1].startswith("error ") else None
    return {"points": points, "status": os.waitstatus_to_exitcode(status), "error": error}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
