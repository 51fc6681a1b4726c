"""Interrupted and resumed equals uninterrupted, bit for bit, from any scheduled checkpoint, on the inline engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from qfleet.experiment import Experiment
from qfleet.roles.replay_shard import Draw, ReplayShard
from qfleet.session import CheckpointSaved
from qfleet.types import Reply
from qfleet.validation import Validated

from .runs import records, stop_after_checkpoint

MakeExperiment = Callable[..., Experiment]
NUM_STEPS = 240
# Each interval is out of step with the others, so that checkpoints fall between logs, updates and validations.
SCHEDULED = {
    "seed": 5,
    "env.num_envs": 3,
    "replay.min_transitions": 30,
    "replay.capacity": 150,  # turns over once, so that old rows are dropped from the checkpoint
    "replay.samples_per_insert": 1.5,
    "logging.every_env_steps": 7,
    "evaluation.every_env_steps": 70,
    "checkpoint.every_env_steps": 60,
    "checkpoint.keep": 9,
    "stop.max_env_steps": NUM_STEPS,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "prioritized": {"replay.sampler": "prioritized", "replay.importance_anneal_updates": 20},
    "noisy": {"algo.noisy": True, "algo.exploration": "none"},
    "noisy-prioritized-dueling": {"algo.noisy": True, "algo.dueling": True, "replay.sampler": "prioritized"},
    "normalized": {"network.normalize_observations": True},
    "n-step": {"algo.n_step": 3},
    "schedules": {
        "algo.optimizer.schedule": "cosine",
        "algo.optimizer.decay_updates": 30,
        "algo.optimizer.name": "rmsprop",
        "algo.target_update": "soft",
        "algo.exploration": "per_env",
    },
    "next-step-autoreset": {"algo.n_step": 3, "env.autoreset": "next_step", "env.vectorization": "sync"},
    "vector-calls": {"strategy.collect_steps": 4, "algo.n_step": 2},
    "rainbow": {
        "algo": "c51",
        **dict.fromkeys(["algo.double", "algo.dueling", "algo.noisy"], True),
        "algo.exploration": "none",
        "algo.n_step": 3,
        "replay.sampler": "prioritized",
    },
    "qr_dqn": {"algo": "qr_dqn", "algo.num_quantiles": 8, "replay.sampler": "prioritized"},
    "iqn": {"algo": "iqn", "algo.num_quantiles": 8, "algo.noisy": True, "algo.double": True},
    "munchausen-iqn": {"algo": "iqn", "algo.double": False, "algo.munchausen": True, "replay.sampler": "prioritized"},
}


class Film(gym.Env[Any, Any]):
    """Stacks of two frames, some of which never come again; episodes end by themselves. Its state can be saved."""

    observation_space = spaces.Box(0, 255, (2, 6, 6), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._stack = np.repeat(self._frame(), 2, axis=0)
        return self._stack, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._stack = np.concatenate([self._stack[1:], self._frame()])
        return self._stack, float(action), bool(self.np_random.random() < 0.2), False, {}

    def _frame(self) -> Any:
        return np.full((1, 6, 6), self.np_random.integers(256), np.uint8)


# Script offers its state and is saved with it; CartPole does not, so that a checkpoint resets it.
ENVS = ["qfleet/Script-v0", "CartPole-v1"]


@pytest.mark.parametrize("env_id", ENVS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(experiment: MakeExperiment, tmp_path: Path, env_id: str, variant: str) -> None:
    changes = SCHEDULED | VARIANTS[variant]
    whole = experiment(env_id, changes, run_dir="whole").run()
    stop_after_checkpoint(experiment(env_id, changes, run_dir="parts"), number=1, num_more_events=25)
    stop_after_checkpoint(Experiment.resume(tmp_path / "parts"), number=2, num_more_events=0)
    resumed = Experiment.resume(tmp_path / "parts").run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"] is not None
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert resumed["eval"] == whole["eval"]
    same = ["num_env_steps", "num_updates", "num_episodes", "samples_per_insert_measured", "validation_return"]
    assert {key: resumed[key] for key in same} == {key: whole[key] for key in same}
    assert whole["num_updates"] > 15


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
def test_frames_stored_once_resume_bit_for_bit_and_train_as_frames_stored_in_full(
    experiment: MakeExperiment, tmp_path: Path, sampler: str
) -> None:
    changes = SCHEDULED | {"replay.sampler": sampler, "algo.n_step": 2}
    run = experiment("Film-v0", changes, run_dir="whole", env=Film)
    in_full = experiment("Film-v0", changes | {"replay.store_frames_once": False}, run_dir="full", env=Film)
    whole = run.run()
    assert in_full.run()["parameters_sha256"] == whole["parameters_sha256"] is not None
    assert list((tmp_path / "whole").rglob("replay-frames-*"))
    assert not list((tmp_path / "full").rglob("replay-frames-*"))
    stop_after_checkpoint(experiment("Film-v0", changes, run_dir="parts", env=Film), number=2, num_more_events=25)
    resumed = Experiment.resume(tmp_path / "parts", env=Film).run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_the_parts_really_matter(experiment: MakeExperiment, tmp_path: Path) -> None:
    # Were the checkpoint not used, another number of steps would have been run: it starts at 60 and not at 0.
    stop_after_checkpoint(experiment("CartPole-v1", SCHEDULED, run_dir="parts"), number=2, num_more_events=5)
    resumed = Experiment.resume(tmp_path / "parts")
    first = next(event for event in resumed.stream() if isinstance(event, Validated | CheckpointSaved))
    assert isinstance(first, Validated)  # at 140 env steps; the one at 70 is not played again
    assert [record["kind"] for record in records(tmp_path / "parts")].count("evaluation") == 2


@pytest.mark.parametrize("env_id", ENVS)
def test_a_larger_budget_goes_on_from_the_end(experiment: MakeExperiment, tmp_path: Path, env_id: str) -> None:
    # The last checkpoint of a run is not a scheduled one unless it falls on the schedule, as here: 240 = 4 * 60.
    changes = SCHEDULED | {"stop.max_env_steps": 120, "evaluation.every_env_steps": 60}
    longer = SCHEDULED | {"evaluation.every_env_steps": 60}
    whole = experiment(env_id, longer, run_dir="whole").run()
    experiment(env_id, changes, run_dir="parts").run()
    resumed = Experiment.resume(tmp_path / "parts", {"stop.max_env_steps": NUM_STEPS}).run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]


def test_a_finished_run_resumed_says_the_same_again(experiment: MakeExperiment, tmp_path: Path) -> None:
    # A kill between the last checkpoint and the summary must cost nothing but the held-out episodes.
    first = experiment("CartPole-v1", SCHEDULED).run()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = Experiment.resume(tmp_path / "run").run()
    assert again["parameters_sha256"] == first["parameters_sha256"] is not None
    assert again["eval"] == first["eval"]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_that_reached_its_target_stays_there(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = SCHEDULED | {"stop.until_return": 5.0, "stop.confirm_episodes": 4, "stop.max_env_steps": 10_000}
    first = experiment("CartPole-v1", changes).run()
    assert first["reached"] is True
    again = Experiment.resume(tmp_path / "run").run()
    assert again["stop_reason"] == "reached"
    assert again["parameters_sha256"] == first["parameters_sha256"] is not None
    assert again["num_env_steps"] == first["num_env_steps"]
    further = Experiment.resume(tmp_path / "run", {"stop.until_return": 501.0, "stop.max_env_steps": 400}).run()
    assert (further["reached"], further["stop_reason"]) == (False, "max_env_steps")


def test_an_interrupt_saves_a_consistent_cut(experiment: MakeExperiment, tmp_path: Path) -> None:
    run = experiment("CartPole-v1", SCHEDULED)
    summary: dict[str, object] = {}
    for number, event in enumerate(run.stream()):
        if number == 45:
            run.interrupt()
        summary = getattr(event, "summary", summary)
    assert summary["stop_reason"] == "interrupted"
    stopped_at = summary["num_env_steps"]
    resumed = Experiment.resume(tmp_path / "run").run()
    assert 0 < stopped_at < resumed["num_env_steps"]
    assert resumed["stop_reason"] == "max_env_steps"
    steps = [record["num_env_steps"] for record in records(tmp_path / "run")]
    assert steps == sorted(steps)


def test_only_the_stop_rule_may_change_on_resume(experiment: MakeExperiment, tmp_path: Path) -> None:
    from qfleet.errors import UsageError

    experiment("qfleet/Identity-v0").run()
    with pytest.raises(UsageError, match=r"algo.gamma.*keeps its settings.*init.from="):
        Experiment.resume(tmp_path / "run", {"algo.gamma": 0.5})
    with pytest.raises(UsageError, match="no run here"):
        Experiment.resume(tmp_path / "nothing-99")


@pytest.mark.parametrize("sampler", ["uniform", "prioritized"])
def test_packed_transport_between_actors_shards_and_learner_changes_nothing(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    sent: list[str] = []
    real = ReplayShard.sample

    def sample(self: ReplayShard, counts: list[int]) -> Reply:
        reply = real(self, counts)
        assert isinstance(reply.payload, Draw)
        sent.extend(type(one).__name__ for one in reply.payload.samples if one is not None)
        return reply

    monkeypatch.setattr(ReplayShard, "sample", sample)
    changes = SCHEDULED | {"replay.sampler": sampler, "algo.n_step": 2}
    changes |= {"strategy": "distributed_replay", "strategy.num_workers": 2, "strategy.num_shards": 2}
    hashes = []
    for once, kind in ((True, "PackedSample"), (False, "Sample")):
        sent.clear()
        run = experiment("Film-v0", changes | {"replay.store_frames_once": once}, run_dir=kind, env=Film)
        hashes.append(run.run()["parameters_sha256"])
        assert set(sent) == {kind}
    assert hashes[0] == hashes[1] is not None
