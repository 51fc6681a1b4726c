"""Exactly N complete episodes, none preferred for being short, the same whoever plays them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from qfleet.config import EvaluationConfig
from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch, probe_spec
from qfleet.errors import CheckpointError, UsageError
from qfleet.evaluation.episodes import BLOCK_NATIVE, BLOCK_SINGLE, make_plan, play
from qfleet.evaluation.players import find_env, open_player
from qfleet.types import Array, BoolArray, IntArray

UNEVEN = EnvConfig(id="qfleet/ShortOrLong-v0", kwargs={"short": 1, "long": 20})
LIMITS = EvaluationConfig(max_episode_steps=30)


def test_short_episodes_are_not_preferred_where_a_vector_environment_prefers_them() -> None:
    # The true mean is 10.5. The standard error of 256 episodes is 9.5 / 16 = 0.6.
    episodes = play(make_plan("random", UNEVEN, LIMITS, 256, seed=3))
    assert len(episodes.returns) == 256
    assert set(episodes.returns) == {1.0, 20.0}
    assert episodes.lengths == [int(value) for value in episodes.returns]
    assert abs(np.mean(episodes.returns) - 10.5) < 2.4, "within four standard errors"

    # The naive way: the first 256 episodes that 256 copies finish. The half that began with a long one is still at it
    # while the others finish short ones: 128 of them, then 64, 32 and so on.
    envs = make_env_batch(UNEVEN, 256)
    envs.reset(seed=3)
    first: list[float] = []
    while len(first) < 256:
        first += envs.step(np.zeros(256, dtype=np.int64)).episode_returns.tolist()
    envs.close()
    assert np.mean(first[:256]) < 10.5 - 2.4, "or this environment would show nothing"


def test_number_of_workers_changes_nothing() -> None:
    plan = make_plan("random", UNEVEN, LIMITS, 2 * BLOCK_SINGLE + 3, seed=5)
    assert (plan.num_blocks, [plan.size_of(block) for block in range(3)]) == (3, [16, 16, 3])
    told: list[int] = []
    alone, shared = play(plan, on_episodes=told.append), play(plan, num_workers=2)
    assert told == [16, 16, 3]
    assert (alone.returns, alone.lengths) == (shared.returns, shared.lengths)
    assert alone.actions.tolist() == shared.actions.tolist()
    assert play(make_plan("random", UNEVEN, LIMITS, 35, seed=6)).returns != alone.returns


def test_actions_are_counted_until_the_episode_ends() -> None:
    episodes = play(make_plan("random", UNEVEN, LIMITS, 40, seed=0))
    assert episodes.actions.sum() == sum(episodes.lengths), "a copy whose episode is over plays on unseen"
    assert (episodes.actions > 0).all()


def test_chance_takes_legal_actions_only() -> None:
    # Script raises at an illegal action.
    masked = EnvConfig(id="qfleet/Script-v0", kwargs={"masks": True, "stagger": 1})
    episodes = play(make_plan("random", masked, LIMITS, 20, seed=0))
    # The copy with seed s begins s entries in: it returns 1+2+4 of the first episode, 8+16 of the second, or a tail.
    assert set(episodes.returns) <= {7.0, 6.0, 4.0, 24.0, 16.0}


def test_an_environment_without_a_time_limit_gets_the_evaluations() -> None:
    endless = EnvConfig(id="qfleet/Chain-v0", kwargs={"mode": "continue"})
    episodes = play(make_plan("random", endless, LIMITS, 2, seed=0))
    assert episodes.lengths == [30, 30]


def test_native_environments_are_played_in_larger_blocks() -> None:
    plan = make_plan("random", EnvConfig(id="CartPole-v1"), LIMITS, 100, seed=0)
    assert plan.block_size == BLOCK_NATIVE
    assert plan.env.max_episode_steps is None, "it has a limit of its own"


def test_a_run_plays_what_its_greedy_policy_says(experiment: Any) -> None:
    run = experiment("qfleet/Identity-v0", {"stop.max_env_steps": 1200})
    run.run()
    player = open_player(str(run.run_dir))
    assert player.spec is not None
    act = player.begin(0, 4)
    shown = np.eye(4, dtype=np.float32)
    episodes = play(make_plan(str(run.run_dir), find_env(player, None), LIMITS, 64, seed=1))
    right: IntArray = act(shown, None)
    # Each action is right at one observation: the return is 1 where the policy names it.
    assert set(episodes.returns) <= {0.0, 1.0}
    assert (np.mean(episodes.returns) == 1.0) == (right.tolist() == [0, 1, 2, 3])
    assert player.about["algo"] == "dqn"


def test_another_environment_must_take_the_same(experiment: Any) -> None:
    run = experiment("qfleet/Identity-v0")
    run.run()
    player = open_player(str(run.run_dir))
    with pytest.raises(UsageError, match=r"--env CartPole-v1: its observations .* are \(\(4,\), 'float32', 2\), this"):
        find_env(player, "CartPole-v1")
    assert find_env(player, "qfleet/Identity-v0") is player.env


def test_nothing_of_that_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.onnx: no such file"):
        open_player(str(tmp_path / "nowhere.onnx"))
    with pytest.raises(CheckpointError, match="no policy here"):
        open_player(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="name it with --env"):
        find_env(open_player("random"), None)


class Served:
    """Has the surface of an exported policy (OnnxPolicy) and of a served one (PolicyClient): action 1, always."""

    asked: ClassVar[list[tuple[str, ...]]] = []

    def __init__(self, url: str, token: str | None = None) -> None:
        self.asked.append((url, str(token)))
        env = {"id": "qfleet/ShortOrLong-v0", "kwargs": {"short": 2, "long": 3}}
        self.body = {"env": env, "algo": "dqn", "facts": {"version": 7, "num_env_steps": 90, "mean_return": 2.5}}
        self.spec = probe_spec(EnvConfig.model_validate(env))
        self.description = self

    @classmethod
    def read(cls, path: str) -> Served:
        return cls(path)

    def describe(self) -> dict[str, Any]:
        return self.body

    def act(self, obs: Array, action_mask: BoolArray | None = None) -> IntArray:
        return np.ones(len(obs), dtype=np.int64)


@pytest.mark.parametrize("kind", ["onnx", "url"])
def test_exported_and_served_policies_say_what_they_are_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QFLEET_TOKEN", "secret")
    name, module = ("OnnxPolicy", "qfleet.onnx_policy") if kind == "onnx" else ("PolicyClient", "qfleet.client")
    fake: Any = ModuleType(module)
    setattr(fake, name, Served)
    monkeypatch.setitem(sys.modules, module, fake)
    target = str(tmp_path / "p.onnx") if kind == "onnx" else "http://127.0.0.1:1"
    (tmp_path / "p.onnx").write_bytes(b"")
    player = open_player(target)
    assert Served.asked[-1] == (target, "None" if kind == "onnx" else "secret")
    assert (player.about["version"], player.about["num_env_steps"], player.about["algo"]) == (7, 90, "dqn")
    episodes = play(make_plan(target, find_env(player, None), LIMITS, 40, seed=0))
    assert set(episodes.returns) == {2.0, 3.0}
    assert episodes.actions.tolist() == [0, sum(episodes.lengths)]


def test_a_description_that_is_damaged_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = ModuleType("qfleet.client")
    fake.PolicyClient = Served
    monkeypatch.setitem(sys.modules, "qfleet.client", fake)
    monkeypatch.setattr(Served, "describe", lambda self: {"env": {"decoy": 1}})
    with pytest.raises(CheckpointError, match="http://x: its description is damaged"):
        open_player("http://x")
