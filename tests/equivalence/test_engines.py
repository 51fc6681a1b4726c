"""A strategy with one call in flight does the same on every engine of one process, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qfleet.experiment import Experiment


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
def test_serial_on_threads_is_serial_on_inline(experiment: Callable[..., Experiment], sampler: str) -> None:
    digests = []
    for name in ("inline", "threads"):
        changes = {
            "engine": name,
            "replay.sampler": sampler,
            "evaluation.every_env_steps": 100,
            "checkpoint.every_env_steps": 200,
        }
        summary = experiment("CartPole-v1", changes, run_dir=name).run()
        assert int(str(summary["num_updates"])) > 50
        digests.append((summary["parameters_sha256"], summary["num_updates"], summary["eval"]))
    assert digests[0] == digests[1]
