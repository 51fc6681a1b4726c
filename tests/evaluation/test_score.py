"""Statistics of episodes and of a run's way to its target, worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from qfleet.envs.make import probe_spec
from qfleet.errors import CheckpointError
from qfleet.evaluation.convergence import convergence, read_convergence
from qfleet.evaluation.episodes import Episodes
from qfleet.evaluation.score import interquartile_mean, score
from qfleet.report.measures import Trace


def trace(*points: tuple[float, float]) -> Trace:
    x = np.array([step for step, _ in points])
    return Trace({"env_steps": x, "updates": x / 10, "seconds": x / 1000}, np.array([value for _, value in points]))


def test_score_of_four_episodes() -> None:
    found = score(Episodes([0.0, 1.0, 2.0, 9.0], [5, 1, 2, 4], np.array([3, 0, 9])))
    assert (found.mean, found.median, found.min, found.max, found.num_episodes) == (3.0, 1.5, 0.0, 9.0, 4)
    assert found.std == pytest.approx(np.sqrt((9 + 4 + 1 + 36) / 4))
    assert found.iqm == 1.5, "0 and 9 are cut off"
    # 2.5% of the 256 resamples of four is 6.4: the seventh mean from below. Sum 0 in 1 order, 1 in 4, 2 in 4 + 6.
    assert found.low == 0.5
    # From above: 36 in 1 order, 29 in 4, 28 in 4.
    assert found.high == 7.0
    assert (found.mean_length, found.min_length, found.max_length) == (3.0, 1, 5)
    assert found.actions == [0.25, 0.0, 0.75]
    assert json.loads(json.dumps(found.to_json()))["interval"] == [0.5, 7.0]


def test_interquartile_mean_cuts_a_quarter_off_each_end() -> None:
    assert interquartile_mean([9.0, 1.0, 2.0, 4.0, -90.0, 3.0, 5.0, 99.0]) == 3.5, "2, 3, 4, 5 are left of eight"
    assert interquartile_mean([1.0, 2.0, 6.0]) == 3.0, "a quarter of three is none"


def test_levels_lie_between_chance_and_the_target() -> None:
    # From -20 to 80: 5, 30, 55, 70 and 80. 55 is passed and lost again; the first time counts.
    found = convergence(trace((100, -20.0), (200, 31.0), (300, 60.0), (400, 20.0), (500, 75.0)), 80.0, -20.0, 600, 0.6)
    assert [level.level for level in found.levels] == pytest.approx([5.0, 30.0, 55.0, 70.0, 80.0])
    assert [level.num_env_steps for level in found.levels] == [200, 200, 300, 500, None]
    assert [level.train_seconds for level in found.levels] == [0.2, 0.2, 0.3, 0.5, None]
    # Trapezoids over 400: 5.5, 45.5, 40, 47.5 on average, of which the mean is 34.625; 54.625 of 100 above chance.
    assert found.average_return == pytest.approx(34.625)
    assert found.area == pytest.approx(0.54625)
    assert (found.is_asked, found.num_env_steps, found.train_seconds) == (True, 600, 0.6)


def test_without_a_target_the_best_validation_is_it() -> None:
    found = convergence(trace((100, 0.1), (200, 0.3), (300, 0.2)), None, 0.0, 300, 0.3)
    assert (found.target_return, found.is_asked) == (0.3, False)
    assert found.levels[-1].num_env_steps == 200, "reached, whatever rounding says"


def test_a_target_below_chance_has_no_way() -> None:
    found = convergence(trace((100, 3.0)), 1.0, 2.0, 100, 0.1)
    assert [level.share for level in found.levels] == [1.0]
    assert found.area is None


def test_a_run_tells_its_way(experiment: Any) -> None:
    run = experiment("qfleet/Identity-v0", {"evaluation.every_env_steps": 100, "stop.until_return": 50.0})
    run.run()
    spec = probe_spec(run.config.env)
    found = read_convergence(run.run_dir, spec, 0.25)
    assert found is not None
    assert (found.target_return, found.is_asked, found.num_env_steps) == (50.0, True, 400)
    assert [level.num_env_steps for level in found.levels] == [None] * 5
    (run.run_dir / "metrics.jsonl").write_text('{"kind": "evaluation"}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged \(KeyError"):
        read_convergence(run.run_dir, spec, 0.25)
    (run.run_dir / "metrics.jsonl").write_text("")
    assert read_convergence(run.run_dir, spec, 0.25) is None
