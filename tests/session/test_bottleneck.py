"""Shares of time, by hand."""

from __future__ import annotations

import pytest

from qfleet.bottleneck import bottleneck, time_shares
from qfleet.strategies.base import Counters
from qfleet.tracker import Tracker
from qfleet.types import Receipt


def test_shares_by_hand() -> None:
    # 4 roles for 10 seconds are 40: 20 stepping, 4 learning, so 16 waiting.
    shares = time_shares({"environment": 20.0, "learner": 4.0}, 10.0, 4, is_concurrent=True)
    assert shares == pytest.approx({"environment": 0.5, "learner": 0.1, "waiting": 0.4})
    # One at a time, four roles are no more than one: 10 seconds, of which 2 are nobody's.
    shares = time_shares({"environment": 3.0, "learner": 5.0}, 10.0, 4, is_concurrent=False)
    assert shares == pytest.approx({"environment": 0.3, "learner": 0.5, "coordinator": 0.2})


def test_clocks_that_add_up_to_more_than_there_is() -> None:
    assert time_shares({"learner": 12.0}, 10.0, 1, is_concurrent=True) == {"learner": 1.0, "waiting": 0.0}
    assert time_shares({}, 0.0, 0, is_concurrent=True) == {}


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"environment": 0.5, "learner": 0.1, "waiting": 0.4}, "environment takes 50% of the time; scale environments"),
        # Most of it is waiting, yet not more than half: what is busy is what the others wait for.
        ({"environment": 0.1, "learner": 0.4, "waiting": 0.5}, "learner takes 40% of the time; scale learning"),
        ({"environment": 0.1, "learner": 0.3, "waiting": 0.6}, "waiting takes 60% of the time; use fewer roles"),
        ({"server": 0.7, "waiting": 0.3}, "server takes 70% of the time; scale the servers"),
        ({"replay": 0.7, "coordinator": 0.3}, "replay takes 70% of the time; scale replay"),
        ({"inference": 0.3, "coordinator": 0.7}, "coordinator takes 70% of the time; give each call more to do"),
        ({"decoding": 1.0, "waiting": 0.0}, "decoding takes 100% of the time; give decoding more roles"),
    ],
)
def test_what_to_scale_next(shares: dict[str, float], words: str) -> None:
    sentence = bottleneck(shares)
    assert sentence is not None
    assert sentence.startswith(words)
    assert len(sentence) < 110


def test_nothing_known_says_nothing() -> None:
    assert bottleneck({}) is None


def test_the_tracker_counts_roles_that_report_and_its_own_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("qfleet.tracker.time.perf_counter", lambda: now[0])
    first = Tracker(Counters(), 0, is_concurrent=True)
    first.start_clock()
    first.add(Receipt(seconds={"learner": 99.0}), "worker-0")
    now[0] = 100.0
    first.stop_clock()
    resumed = Tracker(Counters(), 0, is_concurrent=True)
    resumed.load_state_dict(first.state_dict())
    resumed.start_clock()
    for role in ("worker-0", "worker-1"):
        resumed.add(Receipt(seconds={"learner": 2.0}), role)
    resumed.add(Receipt(lags={"staleness": [3]}), "server-0")  # no busy seconds: no capacity either
    now[0] = 110.0
    # Two roles for 10 seconds, each busy for 2.
    assert resumed.time_shares() == pytest.approx({"learner": 0.2, "waiting": 0.8})
    assert resumed.record()["share_waiting"] == 0.8
    assert resumed.record()["seconds_learner"] == 103.0
