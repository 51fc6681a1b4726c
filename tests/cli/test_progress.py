"""The display: what it says, and that it stays out of training's way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qfleet.cli import progress
from qfleet.cli.progress import Progress, clock
from qfleet.experiment import Experiment
from qfleet.session import CheckpointSaved
from qfleet.strategies.base import CrewChanged, RoleRestarted


class Clock:
    """A clock that goes on by `step` seconds at each look."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += self.step
        return self.now


def shown(experiment: Experiment, is_shown: bool = True) -> int:
    """Run it behind a display; the number of its events."""
    num_events = 0
    with Progress(experiment, "a label", is_shown) as display:
        for event in experiment.stream():
            display.update(event)
            num_events += 1
    return num_events


def test_plain_lines_hold_the_numbers(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "time", Clock(0.5))
    shown(experiment("qfleet/Identity-v0", {"stop.until_return": 1e9, "evaluation.every_env_steps": 100}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "training is over; playing 4 held-out episodes"
    line = lines[-2]
    for part in [
        "of 400 env steps",
        "return ",
        "validation ",
        "(best ",
        "target 1e+09",
        "epsilon 0.",
        " env steps/s",
        " updates/s",
        "replay ratio ",
        " of 4",
        "at most 0:",
    ]:
        assert part in line


def test_display_rests_long_enough_after_a_slow_renewal(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each look at the clock takes 0.1 s here, so a renewal seems to take as long, and 15 s of rest must follow.
    monkeypatch.setattr(progress, "time", Clock(0.1))
    num_events = shown(experiment("qfleet/Identity-v0"))
    renewals = [line for line in capsys.readouterr().err.splitlines() if "env steps/s" in line]
    assert 1 <= len(renewals) <= 1 + num_events * 0.1 / 15


def test_nothing_is_shown_when_it_is_not_wanted(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "time", Clock(100.0))
    shown(experiment("qfleet/Identity-v0"), is_shown=False)
    assert capsys.readouterr().err == ""


def test_terminal_lines_renew_themselves_and_go_away(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[str] = []

    class FakeLive:
        def show(self, text: Any) -> None:
            frames.append(text.plain)

        def close(self) -> None:
            frames.append("closed")

    monkeypatch.setattr(progress, "time", Clock(0.5))
    monkeypatch.setattr(progress, "Live", FakeLive)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown(experiment("qfleet/Identity-v0"))
    assert frames[0].startswith("a label ")
    lines = frames[0].splitlines()
    assert len(lines) == 5
    assert max(len(line) for line in lines) < 110
    assert lines[3].startswith("  time: ")
    assert {"environment", "inference", "coordinator"} <= set(lines[3].split())
    assert " of the time; " in lines[4]
    assert frames[-2:] == ["training is over; playing 4 held-out episodes", "closed"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_several_roles_say_how_they_get_on(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "time", Clock(0.5))
    changes = {"strategy": "parameter_server", "strategy.num_workers": 2, "strategy.wait": "async"}
    shown(experiment("qfleet/Identity-v0", changes))
    line = capsys.readouterr().err.splitlines()[-2]
    for part in ["policy lag p50 ", "staleness p50 ", " p95 ", "% of the time; "]:
        assert part in line


def test_the_end_of_training_is_said_once(
    experiment: Callable[..., Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    run = experiment("qfleet/Identity-v0")
    with Progress(run, "a label", is_shown=True) as display:
        for event in run.stream():
            display.update(event)
            if isinstance(event, CheckpointSaved) and run.session and run.session.stop_reason:
                display.update(event)  # as where roles are saved in several goes
    assert capsys.readouterr().err.count("training is over") == 1


def test_a_restart_is_one_line_with_all_restarts_by_cause(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    class FakeLive:
        def show(self, text: Any) -> None:
            pass

        def say(self, line: str) -> None:
            said.append(line)

        def close(self) -> None:
            pass

    run = experiment("qfleet/Identity-v0")
    events = run.stream()
    next(events)
    assert run.session is not None
    run.session.control.tallies.update({"restarts.killed": 2, "restarts.timeout": 1, "bytes_pushed": 99})
    event = RoleRestarted("worker-1", 3, "killed", "role worker-1 died")
    line = "restarted worker-1 (life 3): role worker-1 died; restarts: killed 2, timeout 1"
    with Progress(run, "a label", is_shown=True) as display:
        display.update(event)
    assert capsys.readouterr().err.splitlines() == [line]
    monkeypatch.setattr(progress, "Live", FakeLive)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress(run, "a label", is_shown=True) as display:
        display.update(event)
        display.update(CrewChanged(5, "worker-4 joined"))
    assert said == [line, "5 workers: worker-4 joined"]
    events.close()
