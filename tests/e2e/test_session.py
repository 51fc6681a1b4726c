"""What a run does around the learning: when it stops, what it validates, what it writes down, what it leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import qfleet
from qfleet.checkpoint import CheckpointStore
from qfleet.config import EvaluationConfig
from qfleet.envs.toy import Identity, MaskedChain
from qfleet.errors import ConfigError, UsageError
from qfleet.experiment import Experiment, Finished
from qfleet.machine import choose_device
from qfleet.networks.flat import vector_sha256
from qfleet.policy import load_policy, make_blueprint, read_policy
from qfleet.recipe import read_config
from qfleet.roles.actor import Actor
from qfleet.roles.blueprint import replay_bytes
from qfleet.roles.evaluator import Evaluator
from qfleet.roles.worker import Worker
from qfleet.run_config import build_config
from qfleet.schedule import lower_bound
from qfleet.session import Logged
from qfleet.strategies.base import Rollout, Update
from qfleet.types import EnvSpec, ParamSnapshot, Receipt
from qfleet.validation import Validated

MakeExperiment = Callable[..., Experiment]


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


# Stop rules


def test_max_env_steps(experiment: MakeExperiment) -> None:
    summary = experiment("qfleet/Identity-v0", {"stop.max_env_steps": 130}).run()
    # Four environments: the first multiple of 4 from 130 on.
    assert (summary["stop_reason"], summary["num_env_steps"]) == ("max_env_steps", 132)


def test_max_updates(experiment: MakeExperiment) -> None:
    summary = experiment("qfleet/Identity-v0", {"stop.max_updates": 9, "stop.max_env_steps": None}).run()
    # Four inserts at 4 samples each are one batch of 16: one update per vector step, so exactly 9.
    assert (summary["stop_reason"], summary["num_updates"]) == ("max_updates", 9)


class Clock:
    """Stands still except where it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr("qfleet.tracker.time", SimpleNamespace(perf_counter=lambda: self.seconds))


def test_max_seconds_counts_training_and_not_validation(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    evaluate = Evaluator.evaluate

    def slow(self: Evaluator, *args: Any) -> Any:
        clock.seconds += 1000.0
        return evaluate(self, *args)

    monkeypatch.setattr(Evaluator, "evaluate", slow)
    changes = {"stop.max_seconds": 50.0, "stop.max_env_steps": 10_000, "evaluation.every_env_steps": 40}
    run = experiment("qfleet/Identity-v0", changes)
    for event in run.stream():
        clock.seconds += 1.0 if isinstance(event, Rollout) else 0.0
    assert isinstance(event, Finished)
    # One second a vector step of 4: 50 of them, whatever the validations took.
    assert event.summary["stop_reason"] == "max_seconds"
    assert event.summary["num_env_steps"] == 200
    assert event.summary["train_seconds"] == 50.0
    assert clock.seconds > 4000


def scripted_evaluations(monkeypatch: pytest.MonkeyPatch, answers: dict[int, list[list[float]]]) -> list[int]:
    """Let evaluations give these returns in turn, by the number of episodes asked; returns those numbers."""
    asked: list[int] = []

    def evaluate(self: Evaluator, snapshot: ParamSnapshot, num_episodes: int, seed: int) -> Receipt:
        asked.append(num_episodes)
        returns = answers[num_episodes].pop(0) if num_episodes in answers else [0.0] * num_episodes
        return Receipt(episode_returns=returns)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    return asked


def test_lower_bound_by_hand() -> None:
    # Mean 10, standard deviation 2, of 4: 10 - k * 2 / 2.
    assert lower_bound([8.0, 12.0, 8.0, 12.0], 0.0) == 10.0
    assert lower_bound([8.0, 12.0, 8.0, 12.0], 1.0) == 9.0
    assert lower_bound([8.0, 12.0, 8.0, 12.0], 2.0) == 8.0


def test_until_return_is_confirmed_with_a_margin(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = scripted_evaluations(
        monkeypatch,
        {
            2: [[1.0, 1.0], [9.5, 9.5], [9.5, 9.5], [9.5, 9.5]],
            # Not confirmed: a mean below 9; a mean of 10 but a lower bound of 10 - 4 / 2 = 8; then 10 - 0.5 / 2.
            4: [[8.9] * 4, [6.0, 14.0, 6.0, 14.0], [9.5, 10.5, 9.5, 10.5]],
        },
    )
    changes = {
        "stop.until_return": 9.0,
        "stop.confirm_episodes": 4,
        "stop.confirm_stderr": 1.0,
        "stop.max_env_steps": 10_000,
        "evaluation.episodes": 2,
        "evaluation.every_env_steps": 100,
        "evaluation.final_episodes": 7,
    }
    summary = experiment("qfleet/Identity-v0", changes).run()
    # Validation 2, confirmation 4, held-out 7.
    assert asked == [2, 2, 4, 2, 4, 2, 4, 7]
    assert (summary["stop_reason"], summary["reached"]) == ("reached", True)
    assert summary["env_steps_to_threshold"] == summary["num_env_steps"] == 400
    assert summary["target_return"] == 9.0
    _, _, _, facts = read_policy(tmp_path / "run" / "best")
    assert facts == {"mean_return": 10.0, "episodes": 4, "num_env_steps": 400}


def test_the_registered_threshold_and_never(experiment: MakeExperiment) -> None:
    assert experiment("CartPole-v1", {"stop.until_return": "registered"}).run()["target_return"] == 475.0
    assert experiment("CartPole-v1", run_dir="never").run()["target_return"] is None
    none_registered = experiment("qfleet/Identity-v0", {"stop.until_return": "registered"}, run_dir="none").run()
    assert (none_registered["target_return"], none_registered["reached"]) == (None, False)


# Pacing


@pytest.mark.parametrize(("asked", "num_env_steps"), [(0.25, 8000), (0.5, 4000), (1.0, 2000), (4.0, 1200), (20.0, 900)])
def test_the_measured_replay_ratio_is_the_asked_one(
    experiment: MakeExperiment, asked: float, num_env_steps: int
) -> None:
    changes = {"replay.samples_per_insert": asked, "env.num_envs": 8, "stop.max_env_steps": num_env_steps}
    summary = experiment("CartPole-v1", changes).run()
    assert summary["samples_per_insert_asked"] == asked
    assert summary["samples_per_insert_measured"] == pytest.approx(asked, rel=0.02)
    # The measure itself, from the counts: 16 samples an update, inserts counted after the first 40.
    samples = 16 * summary["num_updates"]
    assert samples / (summary["num_env_steps"] - 40) == pytest.approx(asked, rel=0.02)


# Validation and the best policy


def test_validation_comes_at_its_interval_and_once_at_the_end(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = {"evaluation.every_env_steps": 100, "stop.max_env_steps": 350, "env.num_envs": 4}
    experiment("qfleet/Identity-v0", changes).run()
    found = records(tmp_path / "run", "evaluation")
    # The first multiple of 4 from each hundred on, and the end (352).
    assert [record["num_env_steps"] for record in found] == [100, 200, 300, 352]
    assert all(record["episodes"] == 4 for record in found)


def test_validation_episodes_are_fresh_and_held_out_ones_others_still(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    evaluate = Evaluator.evaluate

    def noted(self: Evaluator, snapshot: Any, num_episodes: int, seed: int) -> Any:
        seeds.append(seed)
        return evaluate(self, snapshot, num_episodes, seed)

    monkeypatch.setattr(Evaluator, "evaluate", noted)
    experiment("qfleet/Identity-v0", {"evaluation.every_env_steps": 100}).run()
    assert len(seeds) == len(set(seeds)) == 5


def test_the_best_policy_is_kept(experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripted_evaluations(monkeypatch, {1: [[5.0], [9.0], [7.0], [8.0]]})
    run = experiment("qfleet/Identity-v0", {"evaluation.every_env_steps": 100, "evaluation.episodes": 1})
    validated = [event for event in run.stream() if isinstance(event, Validated)]
    assert [event.is_best for event in validated] == [True, True, False, False]
    _, _, snapshot, facts = read_policy(tmp_path / "run" / "best")
    assert facts["mean_return"] == 9.0
    assert snapshot.version == validated[1].version < validated[3].version
    assert len(list((tmp_path / "run" / "best").glob("policy-*.safetensors"))) == 1


def test_the_summary_scores_the_best_policy(experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    versions: list[tuple[int, int]] = []
    evaluate = Evaluator.evaluate

    def noted(self: Evaluator, snapshot: Any, num_episodes: int, seed: int) -> Any:
        versions.append((num_episodes, snapshot.version))
        return evaluate(self, snapshot, num_episodes, seed)

    monkeypatch.setattr(Evaluator, "evaluate", noted)
    changes = {"evaluation.every_env_steps": 100, "evaluation.final_episodes": 99}
    summary = experiment("CartPole-v1", changes).run()
    held_out = versions[-1]
    returns = summary["eval"]
    assert held_out[0] == returns["episodes"] == 99
    assert held_out[1] in {version for _, version in versions[:-1]}
    assert returns["min_return"] <= returns["mean_return"] <= returns["max_return"]


# What is written


def test_metrics_lines(experiment: MakeExperiment, tmp_path: Path) -> None:
    run = experiment("qfleet/Identity-v0", {"logging.every_env_steps": 50})
    logged = [event.record for event in run.stream() if isinstance(event, Logged)]
    found = records(tmp_path / "run", "train")
    assert [record["num_env_steps"] for record in found] == [52, 100, 152, 200, 252, 300, 352, 400]
    assert [{"kind": "train", **record} for record in logged] == found
    last = found[-1]
    assert last["num_inserted"] == 400
    assert last["num_samples"] == 16 * last["num_updates"]
    assert last["num_episodes"] == 400  # one step an episode
    assert last["samples_per_insert"] == pytest.approx(last["num_samples"] / 360, abs=1e-4)
    for name in ("loss", "mean_q", "grad_norm", "epsilon", "mean_return", "train_seconds", "env_steps_per_second"):
        assert isinstance(last[name], float), name
    for activity in ("environment", "inference", "replay", "learner"):
        assert 0 < last[f"seconds_{activity}"] <= last["train_seconds"]


def test_tensorboard_events_are_readable(experiment: MakeExperiment, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"logging.tensorboard": True, "evaluation.every_env_steps": 200}
    experiment("qfleet/Identity-v0", changes).run()
    accumulator = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    accumulator.Reload()
    for kind, name in [("train", "loss"), ("train", "num_updates"), ("evaluation", "mean_return")]:
        wanted = [(record["num_env_steps"], record[name]) for record in records(tmp_path / "run", kind)]
        got = [(scalar.step, scalar.value) for scalar in accumulator.Scalars(f"{kind}/{name}")]
        assert len(wanted) >= 2
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_lags_go_to_metrics_and_tensorboard(experiment: MakeExperiment, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"logging.tensorboard": True, "strategy": "parameter_server", "strategy.num_workers": 3}
    summary = experiment("qfleet/Identity-v0", changes | {"strategy.wait": "async"}).run()
    last = records(tmp_path / "run", "train")[-1]
    assert {f"staleness_{name}" for name in ("mean", "p50", "p95", "max")} <= set(last)
    assert 0 <= last["policy_lag_p50"] <= last["policy_lag_p95"] <= last["policy_lag_max"]
    assert sum(last[name] for name in last if name.startswith("share_")) == pytest.approx(1.0, abs=1e-3)
    accumulator = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    accumulator.Reload()
    assert {"train/staleness", "train/policy_lag"} <= set(accumulator.Tags()["histograms"])
    (found,) = [one for one in accumulator.Histograms("train/staleness") if one.step == last["num_env_steps"]]
    value = found.histogram_value
    # One push an update, each of its own staleness; a bucket ends half-way to the next version.
    assert sum(value.bucket) == value.num == last["num_updates"] <= summary["lags"]["staleness"]["num"]
    total = sum((limit - 0.5) * count for limit, count in zip(value.bucket_limit, value.bucket, strict=True))
    assert total == value.sum
    assert total / value.num == pytest.approx(last["staleness_mean"], abs=1e-4)


def test_without_tensorboard_there_are_no_events(experiment: MakeExperiment, tmp_path: Path) -> None:
    experiment("qfleet/Identity-v0").run()
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_checkpoints_are_kept_and_the_rest_collected(
    experiment: MakeExperiment, tmp_path: Path, keep: int
) -> None:
    # A ring of 60 turns over between checkpoints, so old chunks of rows go too.
    changes = {"checkpoint.every_env_steps": 50, "checkpoint.keep": keep, "replay.capacity": 60}
    experiment("qfleet/Identity-v0", changes).run()
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep)
    manifests = sorted(store.folder.glob("manifest-*.json"))
    assert [path.name for path in manifests] == [f"manifest-{i:05d}.json" for i in range(8 - keep, 8)]
    listed = {file.path for path in manifests for files in store.read(path).roles.values() for file in files}
    on_disk = {str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()}
    assert on_disk == listed | {path.name for path in manifests}
    rows = [path for path in listed if Path(path).name.startswith("replay-0")]
    assert 1 <= len(rows) <= keep + 2


def test_config_toml_reproduces_the_run(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = {
        "seed": 17,
        "algo.optimizer.max_grad_norm": None,  # None where the default is a number: TOML has no null
        "stop.max_env_steps": None,
        "stop.max_updates": 30,
        "algo.exploration": "none",
        "env.kwargs": {"num_actions": 3},
    }
    first = experiment("qfleet/Identity-v0", changes)
    summary = first.run()
    path = tmp_path / "run" / "config.toml"
    assert read_config(path) == first.config
    assert first.config.algo.optimizer.max_grad_norm is None
    again = Experiment(read_config(path), tmp_path / "again").run()
    assert again["parameters_sha256"] == summary["parameters_sha256"]
    assert (tmp_path / "again" / "config.toml").read_text() == path.read_text()
    by_recipe = Experiment.from_recipe("qfleet/Identity-v0", recipe=str(path), run_dir=tmp_path / "third").run()
    assert by_recipe["parameters_sha256"] == summary["parameters_sha256"]


def test_none_is_a_word_only_where_a_field_may_be_none() -> None:
    assert build_config({}, [("stop.max_env_steps", "none")]).stop.max_env_steps is None
    assert build_config({}, [("algo.exploration", "none")]).algo.exploration.kind == "none"
    with pytest.raises(ConfigError, match=r"stop.confirm_episodes = 'none'"):
        build_config({}, [("stop.confirm_episodes", "none")])


def test_a_directory_with_something_in_it_is_refused(experiment: MakeExperiment, tmp_path: Path) -> None:
    experiment("qfleet/Identity-v0").run()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"not empty; continue it with --resume"):
        experiment("qfleet/Identity-v0").run()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_learning_curve_is_drawn(experiment: MakeExperiment, tmp_path: Path, drawing: None) -> None:
    run = experiment("qfleet/Identity-v0", {"evaluation.every_env_steps": 100})
    run.run()
    assert run.warnings == []
    assert (tmp_path / "run" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


# Policies


def test_init_from_starts_with_the_best_policy_of_a_run(experiment: MakeExperiment, tmp_path: Path) -> None:
    experiment("qfleet/Identity-v0", {"seed": 1}, run_dir="old").run()
    _, _, best, _ = read_policy(tmp_path / "old" / "best")
    # No update is allowed: what is there at the end is what was there at the start.
    still = {"seed": 2, "init.from": str(tmp_path / "old"), "stop.max_env_steps": 36}
    new = experiment("qfleet/Identity-v0", still, run_dir="new").run()
    assert (new["num_updates"], best.version > 0) == (0, True)
    assert new["parameters_sha256"] == vector_sha256(best.vector)
    fresh = experiment("qfleet/Identity-v0", {"seed": 2, "stop.max_env_steps": 36}, run_dir="fresh").run()
    assert fresh["parameters_sha256"] != new["parameters_sha256"]


def test_load_policy_acts_on_one_and_many(experiment: MakeExperiment, tmp_path: Path) -> None:
    changes = {"algo.gamma": 0.0, "algo.learning_rate": 0.01, "stop.max_env_steps": 800}
    summary = experiment("qfleet/Identity-v0", changes).run()
    assert summary["eval"]["mean_return"] == 1.0
    policy = qfleet.load_policy(tmp_path / "run")
    actions = policy.act(np.eye(4, dtype=np.float32))
    np.testing.assert_array_equal(actions, [0, 1, 2, 3])
    single = policy.act(np.eye(4, dtype=np.float32)[2])
    assert (single, type(single)) == (2, int)
    assert policy.act([0, 0, 0, 1]) == 3, "a list will do"
    # The best one is illegal: the second best of the legal ones.
    masked = policy.act(np.eye(4, dtype=np.float32)[2], np.array([True, False, False, False]))
    assert masked == 0
    with pytest.raises(UsageError, match=r"shape \(3,\); this policy takes \(4,\)"):
        policy.act(np.zeros(3))


def test_first_weights_are_the_same_in_every_role(tiny: dict[str, Any]) -> None:
    config = build_config({}, [*tiny.items(), ("env.id", "qfleet/Identity-v0")])
    blueprint = make_blueprint(config, Experiment(config, "unused").spec)
    torch.manual_seed(99)
    global_state = torch.random.get_rng_state()
    workers = [Worker(blueprint, f"worker-{i}") for i in range(2)]
    vectors = [
        *(worker.learner.online.vector for worker in workers),
        *(worker.learner.target.vector for worker in workers),
        Evaluator(blueprint, EvaluationConfig(num_envs=1)).network.vector,
        Actor(blueprint, "actor-5", blueprint.build_network(trainable=False)).network.vector,
    ]
    assert all(torch.equal(vectors[0], vector) for vector in vectors)
    assert torch.equal(torch.random.get_rng_state(), global_state), "the global generator is given back"
    other = make_blueprint(config.model_copy(update={"seed": 1}), blueprint.spec)
    assert not torch.equal(other.build_network().vector, vectors[0])
    # Yet the roles explore on their own.
    assert workers[0].actor.generator.random() != workers[1].actor.generator.random()


# The user's own parts, through the Python API


def test_the_python_api(tmp_path: Path, tiny: dict[str, Any]) -> None:
    experiment = qfleet.Experiment.from_recipe("CartPole-v1", seed=3, run_dir=tmp_path / "run", overrides=tiny)
    kinds = []
    for event in experiment.stream():
        kinds.append(type(event))
    assert kinds[-1] is Finished
    assert kinds.count(Finished) == 1
    assert {Rollout, Update, Validated, Logged} <= set(kinds)
    assert event.summary["seed"] == 3
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == event.summary
    assert (tmp_path / "run" / "config.toml").is_file()


def test_a_callable_environment(experiment: MakeExperiment, tmp_path: Path) -> None:
    run = experiment("mine", {"stop.max_env_steps": 100}, env=lambda: MaskedChain(4, time_limit=9))
    summary = run.run()
    assert summary["env"] == "mine"
    assert load_policy(tmp_path / "run").spec.has_action_mask


class Dictionary(gym.Env[Any, Any]):
    """Dict observations, MultiDiscrete actions: right are the two shown digits."""

    def __init__(self) -> None:
        box = gym.spaces.Box(0.0, 1.0, (3,), np.float32)
        self.observation_space = gym.spaces.Dict({"left": box, "right": box})
        self.action_space = gym.spaces.MultiDiscrete([3, 3])

    def _obs(self) -> dict[str, Any]:
        self.shown = self.np_random.integers(3, size=2)
        return {"left": np.eye(3, dtype=np.float32)[self.shown[0]], "right": np.eye(3, dtype=np.float32)[self.shown[1]]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        reward = float((np.asarray(action) == self.shown).sum())
        return self._obs(), reward, True, False, {}


def test_dict_observations_and_multi_discrete_actions_are_flattened_and_learned(experiment: MakeExperiment) -> None:
    changes = {
        "algo.learning_rate": 0.01,
        "algo.loss": "mse",
        "network.hidden": [32],
        "env.num_envs": 8,
        "replay.samples_per_insert": 8.0,
        "stop.max_env_steps": 2000,
        "algo.exploration.end": 1.0,
        "evaluation.final_episodes": 20,
    }
    assert experiment("digits", changes, env=Dictionary).run()["eval"]["mean_return"] == 2.0


PACKAGE = """
import gymnasium as gym
import torch
from torch import nn
from qfleet.envs.toy import Identity

class MyEnv(Identity):
    pass

gym.register(id="ProofEnv-v7", entry_point="proof_package:MyEnv")

class MyNet(nn.Sequential):
    def __init__(self, obs_shape):
        super().__init__(nn.Linear(obs_shape[0], 9), nn.Tanh())
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "proof_package.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("proof_package", None)
    gym.registry.pop("ProofEnv-v7", None)


@pytest.mark.parametrize("env_id", ["proof_package:ProofEnv-v7", "proof_package:MyEnv"])
def test_a_users_environment_and_network(
    experiment: MakeExperiment, package: None, tmp_path: Path, env_id: str
) -> None:
    changes = {"network": "proof_package:MyNet", "algo.gamma": 0.0, "algo.learning_rate": 0.03}
    summary = experiment(env_id, changes | {"stop.max_env_steps": 1200}).run()
    assert summary["eval"]["mean_return"] == 1.0
    policy = load_policy(tmp_path / "run")
    # 4 * 9 + 9 in the user's layer, 9 * 4 + 4 in the head.
    assert len(policy.snapshot.vector) == 85
    resumed = Experiment.resume(tmp_path / "run", {"stop.max_env_steps": 1400}).run()
    assert resumed["num_env_steps"] == 1400


@pytest.mark.parametrize("whole", [True, False])
def test_the_process_gets_its_torch_settings_back(experiment: MakeExperiment, whole: bool) -> None:
    torch.set_num_threads(2)
    events = experiment("qfleet/Identity-v0", {"num_threads": 1}).stream()
    next(events)
    assert torch.get_num_threads() == 1
    if whole:
        list(events)
    events.close()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.tensor(1e-40) * 0.5 > 0, "denormals are numbers again"


def test_the_environments_name_is_needed() -> None:
    with pytest.raises(UsageError, match=r"env.id: no environment is named"):
        Experiment(build_config({}, []))


def test_masks_reach_acting_target_and_evaluation(experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    # An illegal action raises ValueError in the environment, in training and in evaluation alike.
    taken: list[int] = []
    step = MaskedChain.step

    def noted(self: MaskedChain, action: int) -> Any:
        assert self.action_mask(int(self.counters[0]))[action]
        taken.append(int(action))
        return step(self, action)

    monkeypatch.setattr(MaskedChain, "step", noted)
    changes = {"env.kwargs": {"num_states": 6, "time_limit": 20}, "evaluation.every_env_steps": 100}
    experiment("qfleet/MaskedChain-v0", changes).run()
    assert set(taken) == {0, 1, 2}
    assert Identity(2).action_space.n == 2  # decoy: an environment without masks stays without


def test_the_policy_makes_the_environment_it_fits(experiment: MakeExperiment, tmp_path: Path) -> None:
    experiment("Pendulum-v1", {"env.discretize": 3, "env.max_episode_steps": 20}).run()
    policy = load_policy(tmp_path / "run")
    env = policy.make_env()
    obs, _ = env.reset(seed=1)
    action = policy.act(obs)
    assert action in range(3)
    assert env.action_space.contains(np.int64(action))
    assert np.isfinite(float(env.step(action)[1]))


def test_auto_takes_a_gpu_for_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = EnvSpec("v", (4,), "float32", 2)
    image = EnvSpec("i", (4, 84, 84), "uint8", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device("auto", spec) for spec in (vector, image)] == ["cpu", "cuda"]
    assert choose_device("cuda", vector) == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [choose_device("auto", spec) for spec in (vector, image)] == ["cpu", "cpu"]
    with pytest.raises(UsageError, match="torch sees no CUDA device"):
        choose_device("cuda", image)


def test_the_stated_memory_holds_what_a_prioritized_replay_draws_by(experiment: MakeExperiment) -> None:
    uniform = experiment("qfleet/Identity-v0", {"replay.capacity": 100_000}, run_dir="a")
    prioritized = experiment(
        "qfleet/Identity-v0", {"replay.capacity": 100_000, "replay.sampler": "prioritized"}, run_dir="b"
    )
    rows, with_tree = (replay_bytes(run.config.replay, run.spec) for run in (uniform, prioritized))
    assert with_tree - rows >= 100_000 * 8  # a float64 a leaf, at the least
    assert f"{with_tree / 1e6:,.1f} MB" in prioritized.describe()


def test_checkpoints_that_would_cut_every_episode_are_warned_of(experiment: MakeExperiment) -> None:
    # 400 env steps over 4 copies are 100 steps a copy, an episode may take 500.
    cutting = experiment("CartPole-v1", {"checkpoint.every_env_steps": 400}, run_dir="a")
    cutting.run()
    assert any("every 100 steps of a copy; they may take 500" in line for line in cutting.warnings)
    harmless = experiment("CartPole-v1", {"checkpoint.every_env_steps": 2000}, run_dir="b")
    harmless.run()
    assert harmless.warnings == []
