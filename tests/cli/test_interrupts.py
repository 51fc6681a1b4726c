"""Ctrl-C and SIGTERM: the run is saved, the exit code is a shell's, and the printed command goes on with it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.cli.console import Output
from qfleet.cli.interrupts import MESSAGE, NOTHING_TO_SAVE, Interrupts
from qfleet.cli.train import run_one
from qfleet.experiment import Experiment

LONG = ["--set", "stop.max_env_steps=100000000", "--set", "evaluation.every_env_steps=500"]
CONTINUE = "interrupted: saved; continue with: qfleet "


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_the_printed_command_resumes(
    tmp_path: Path,
    command: Callable[..., list[str]],
    cli: Callable[..., Any],
    settings: list[str],
    number: signal.Signals,
    code: int,
) -> None:
    args = command("train", "qfleet/Identity-v0", *settings, *LONG, "--run-dir", "a run", "--json")
    pipe = subprocess.PIPE
    with subprocess.Popen(args, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        # The first line of progress comes once training is under way.
        for line in process.stderr:
            if "env steps/s" in line:
                break
        process.send_signal(number)
        rest = process.stderr.read()
        summary = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == code, rest
    assert MESSAGE in rest
    assert summary["stop_reason"] == "interrupted"
    assert summary["eval"] is None
    (printed,) = [line for line in rest.splitlines() if line.startswith(CONTINUE)]
    words = shlex.split(printed.removeprefix(CONTINUE))
    assert words == ["train", "--resume", "a run"]
    result = cli(*words, "--max-env-steps", summary["num_env_steps"] + 100, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["num_env_steps"] == summary["num_env_steps"] + 100


def test_a_run_that_nobody_listens_to_is_saved_all_the_same(
    experiment: Callable[..., Experiment], capfd: pytest.CaptureFixture[str]
) -> None:
    one = experiment("qfleet/Identity-v0")
    begin = one.stream

    def interrupted() -> Any:
        for event in begin():
            if interrupts.number is None:
                os.kill(os.getpid(), signal.SIGTERM)
            yield event

    one.stream = interrupted  # type: ignore[method-assign]
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(2)
    os.dup2(writer, 2)  # standard error is a pipe now that nobody reads
    try:
        with Interrupts() as interrupts:
            assert run_one(one, Output(as_json=False, quiet=True), interrupts) == 143
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
    assert one.session is not None
    assert one.session.last_checkpoint is not None
    assert one.session.last_checkpoint.is_file()


def test_a_run_that_computes_nothing_promises_no_checkpoint(
    experiment: Callable[..., Experiment], capfd: pytest.CaptureFixture[str]
) -> None:
    one = experiment("qfleet/Identity-v0", {"engine": "sim", "engine.compute": "none"})
    with Interrupts() as interrupts:
        session_begins = one.stream

        def interrupted() -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return session_begins()

        one.stream = interrupted  # type: ignore[method-assign]
        assert run_one(one, Output(as_json=False, quiet=True), interrupts) == 130
    said = capfd.readouterr().err
    assert said.splitlines() == [NOTHING_TO_SAVE, "interrupted: nothing was computed, so nothing was saved"]
    assert one.session is not None
    assert one.session.last_checkpoint is None


def test_second_signal_stops_at_once() -> None:
    asked = []
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.on_first = [lambda: asked.append("save")]
        os.kill(os.getpid(), signal.SIGINT)
        assert (asked, interrupts.exit_code) == (["save"], 130)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert asked == ["save"]
    assert signal.getsignal(signal.SIGINT) is before
