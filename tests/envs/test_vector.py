"""EnvBatch: one meaning of a step in every autoreset mode, and exact episode accounting."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch
from qfleet.envs.toy import Script
from qfleet.envs.vector import EnvBatch
from qfleet.errors import EnvError, UsageError
from qfleet.types import EnvSpec, EnvStep

REWARDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
ENDS = ("", "", "terminated", "", "truncated", "both", "")
NUM_ENVS = 3
NUM_ACTIONS = 4


def script_batch(mode: AutoresetMode, masks: bool = False) -> EnvBatch:
    def build() -> Script:
        return Script(rewards=REWARDS, ends=ENDS, stagger=2, masks=masks, num_actions=NUM_ACTIONS)

    env = SyncVectorEnv([build] * NUM_ENVS, copy=False, autoreset_mode=mode)
    return EnvBatch(env, EnvSpec("qfleet/Script-v0", (4,), "float32", NUM_ACTIONS, has_action_mask=masks))


def legal_mask(obs: np.ndarray) -> np.ndarray:
    """What Script offers at an observation: all but action (3 * episode + step) % 4."""
    _, episode, step, _ = obs
    return np.arange(NUM_ACTIONS) != (3 * episode + step) % NUM_ACTIONS


def choose(obs: np.ndarray) -> np.ndarray:
    """An action per row that depends on the observation alone, and is never the illegal one."""
    return ((3 * obs[:, 1] + obs[:, 2]).astype(np.int64) + 1 + obs[:, 2].astype(np.int64) % 3) % NUM_ACTIONS


def expected_transitions(tag: int, count: int) -> list[tuple[Any, ...]]:
    """By hand from the script, without any vector environment: (obs, action, reward, terminated, truncated, next)."""
    transitions: list[tuple[Any, ...]] = []
    entry, episode, step, last_action = 2 * tag % len(REWARDS), 0, 0, 0
    for _ in range(count):
        obs = (tag, episode, step, last_action)
        action = int(choose(np.array([obs]))[0])
        end = ENDS[entry]
        flags = (end in ("terminated", "both"), end in ("truncated", "both"))
        transitions.append((obs, action, REWARDS[entry], *flags, (tag, episode, step + 1, action)))
        entry = (entry + 1) % len(REWARDS)
        episode, step, last_action = (episode + 1, 0, 0) if end else (episode, step + 1, action)
    return transitions


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("masks", [False, True])
def test_every_transition_is_the_scripts_and_none_crosses_a_border(mode: AutoresetMode, masks: bool) -> None:
    batch = script_batch(mode, masks)
    obs = batch.reset(seed=0)
    seen: list[list[tuple[Any, ...]]] = [[] for _ in range(NUM_ENVS)]
    for _ in range(40):
        actions = choose(obs)
        acted_on = obs
        step = batch.step(actions)
        for i in np.flatnonzero(step.valid):
            seen[i].append(
                (
                    tuple(acted_on[i]),
                    actions[i],
                    step.reward[i],
                    step.terminated[i],
                    step.truncated[i],
                    tuple(step.next_obs[i]),
                )
            )
            if masks and not step.terminated[i]:
                assert step.next_action_mask is not None
                np.testing.assert_array_equal(step.next_action_mask[i], legal_mask(step.next_obs[i]))
        assert (step.next_action_mask is not None) == masks
        np.testing.assert_array_equal(step.obs, batch.obs)
        obs = step.obs
    for i in range(NUM_ENVS):
        assert seen[i] == expected_transitions(tag=i, count=len(seen[i]))
    # Under NEXT_STEP each episode costs one step more, which is no transition. Env 0's episodes have 3, 2, 1 and then
    # again and again 4, 2, 1 steps: 6 valid of the first 9 steps, 7 of each 10 that follow, and the 40th.
    assert len(seen[0]) == (6 + 3 * 7 + 1 if mode is AutoresetMode.NEXT_STEP else 40)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_masks_to_act_on_are_those_of_the_current_obs(mode: AutoresetMode) -> None:
    batch = script_batch(mode, masks=True)
    obs = batch.reset(seed=0)
    assert batch.action_mask is not None
    waiting = np.zeros(NUM_ENVS, dtype=bool)
    for _ in range(20):
        for i in np.flatnonzero(~waiting):
            np.testing.assert_array_equal(batch.action_mask[i], legal_mask(obs[i]))
        step = batch.step(choose(obs))
        waiting = (step.terminated | step.truncated) & (mode is AutoresetMode.NEXT_STEP)
        obs = step.obs


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_episodes_are_reported_once_with_their_raw_return(mode: AutoresetMode) -> None:
    batch = script_batch(mode)
    obs = batch.reset(seed=0)
    episodes: list[list[tuple[float, int]]] = [[] for _ in range(NUM_ENVS)]
    for _ in range(20):
        step = batch.step(choose(obs))
        obs = step.obs
        for env, value, length in zip(step.episode_envs, step.episode_returns, step.episode_lengths, strict=True):
            episodes[env].append((value, length))
    # Script from entry 0: 1+2+4 | 8+16 | 32 | 64+1+2+4 | 8+16 ...; env 1 begins at entry 2, env 2 at entry 4.
    assert episodes[0][:5] == [(7.0, 3), (24.0, 2), (32.0, 1), (71.0, 4), (24.0, 2)]
    assert episodes[1][:4] == [(4.0, 1), (24.0, 2), (32.0, 1), (71.0, 4)]
    assert episodes[2][:4] == [(16.0, 1), (32.0, 1), (71.0, 4), (24.0, 2)]


@pytest.mark.parametrize("config", [{}, {"vectorization": "sync"}, {"vectorization": "sync", "autoreset": "next_step"}])
def test_accounting_equals_gymnasiums(config: dict[str, str]) -> None:
    num_envs, num_env_steps = 5, 300
    batch = make_env_batch(EnvConfig(id="CartPole-v1", num_envs=num_envs, **config))
    mode = "vector_entry_point" if not config else "sync"
    asked = {"autoreset_mode": AutoresetMode.NEXT_STEP if "autoreset" in config else AutoresetMode.SAME_STEP}
    reference = RecordEpisodeStatistics(
        gym.make_vec("CartPole-v1", num_envs, vectorization_mode=mode, vector_kwargs=asked if mode == "sync" else None)
    )
    batch.reset(seed=3)
    reference.reset(seed=3)
    num_episodes = 0
    for actions in np.random.default_rng(0).integers(2, size=(num_env_steps, num_envs)):
        step = batch.step(actions)
        *_, info = reference.step(actions)
        ended = info.get("_episode", np.zeros(num_envs, dtype=bool))
        np.testing.assert_array_equal(step.episode_envs, np.flatnonzero(ended))
        if ended.any():
            np.testing.assert_array_equal(step.episode_returns, info["episode"]["r"][ended])
            np.testing.assert_array_equal(step.episode_lengths, info["episode"]["l"][ended])
        num_episodes += len(step.episode_envs)
    assert num_episodes > 20


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_cartpole_next_obs_follows_by_its_physics_also_at_the_end(vectorization: Any) -> None:
    batch = make_env_batch(EnvConfig(id="CartPole-v1", num_envs=4, max_episode_steps=15, vectorization=vectorization))
    physics = CartPoleEnv()
    physics.reset(seed=0)
    obs = batch.reset(seed=1)
    num_valid = np.zeros(4, dtype=np.int64)
    num_ended = np.zeros(4, dtype=np.int64)
    for actions in np.random.default_rng(1).integers(2, size=(80, 4)):
        step = batch.step(actions)
        for i in np.flatnonzero(step.valid):
            physics.state = obs[i].astype(np.float64)
            physics.steps_beyond_terminated = None
            expected, _, terminated, _, _ = physics.step(int(actions[i]))
            np.testing.assert_allclose(step.next_obs[i], expected, rtol=1e-5, atol=1e-6)
            assert step.terminated[i] == terminated
            assert step.reward[i] == 1.0
        num_valid += step.valid
        for env, length, value in zip(step.episode_envs, step.episode_lengths, step.episode_returns, strict=True):
            assert length == value
            assert step.truncated[env] == (length == 15)
            num_ended[env] += length
        obs = step.obs
    running = batch._lengths
    np.testing.assert_array_equal(num_valid, num_ended + running)
    assert (num_ended > 0).all()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_returned_arrays_are_never_written_again(mode: AutoresetMode) -> None:
    batch = script_batch(mode, masks=True)
    kept: list[tuple[EnvStep, list[Any]]] = []
    obs = batch.reset(seed=0)
    first, first_copy = obs, obs.copy()
    for _ in range(15):
        step = batch.step(choose(obs))
        obs = step.obs
        kept.append((step, [np.copy(getattr(step, field.name)) for field in fields(step)]))
    np.testing.assert_array_equal(first, first_copy)
    for step, copies in kept:
        for field, copied in zip(fields(step), copies, strict=True):
            np.testing.assert_array_equal(getattr(step, field.name), copied, err_msg=field.name)


def test_dtypes_are_the_contracts() -> None:
    batch = script_batch(AutoresetMode.SAME_STEP, masks=True)
    obs = batch.reset(seed=0)
    for _ in range(3):
        step = batch.step(choose(obs))
        obs = step.obs
        dtypes = {field.name: getattr(step, field.name).dtype.name for field in fields(step)}
        assert dtypes == {
            "next_obs": "float32",
            "reward": "float32",
            "terminated": "bool",
            "truncated": "bool",
            "valid": "bool",
            "obs": "float32",
            "next_action_mask": "bool",
            "episode_returns": "float64",
            "episode_lengths": "int64",
            "episode_envs": "int64",
        }
        assert step.obs.flags.c_contiguous


def test_training_reward_is_scaled_then_clipped_and_returns_stay_raw() -> None:
    config = EnvConfig(
        id="qfleet/Script-v0",
        num_envs=1,
        kwargs={"rewards": (1.0, -30.0, 4.0), "ends": ("", "", "terminated")},
        reward_scale=0.5,
        reward_clip=1.5,
    )
    batch = make_env_batch(config)
    batch.reset(seed=0)
    steps = [batch.step(np.zeros(1, dtype=np.int64)) for _ in range(3)]
    assert [float(step.reward[0]) for step in steps] == [0.5, -1.5, 1.5]
    assert steps[2].episode_returns.tolist() == [-25.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_a_reward_that_is_no_number_is_refused(bad: float, autoreset: Any) -> None:
    kwargs = {"rewards": (1.0, 1.0, bad), "ends": ("truncated", "", ""), "stagger": 1}
    batch = make_env_batch(EnvConfig(id="qfleet/Script-v0", num_envs=2, kwargs=kwargs, autoreset=autoreset))
    batch.reset(seed=0)
    actions = np.zeros(2, dtype=np.int64)
    batch.step(actions)
    with pytest.raises(EnvError) as caught:
        batch.step(actions)
    # Env 1 begins at entry 1, so its second step pays the bad reward; env 0 has begun its second episode.
    assert str(caught.value) == (
        f"environment qfleet/Script-v0: env 1 gave reward {bad} at step 2 of its episode; "
        "rewards must be finite numbers, so fix the environment's reward"
    )


@pytest.mark.filterwarnings("ignore:overflow encountered in dot")
def test_huge_but_finite_rewards_are_fine() -> None:
    kwargs = {"rewards": (1e308, 1e308), "ends": ("", "")}
    batch = make_env_batch(EnvConfig(id="qfleet/Script-v0", num_envs=4, kwargs=kwargs, reward_clip=1.0))
    batch.reset(seed=0)
    assert batch.step(np.zeros(4, dtype=np.int64)).reward.tolist() == [1.0] * 4


class DeadEnd(gym.Env[Any, Any]):
    """No legal action from step 2 on; ends there as told."""

    observation_space = gym.spaces.Box(0, 9, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, end: str = "", as_list: bool = False) -> None:
        self.end = end
        self.as_list = as_list
        self.count = 0

    def result(self) -> tuple[Any, dict[str, Any]]:
        mask = [self.count < 2, 0]
        return np.array([self.count], np.float32), {"action_mask": mask if self.as_list else np.array(mask, np.int8)}

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        self.count = 0
        return self.result()

    def step(self, action: Any) -> Any:
        self.count += 1
        obs, info = self.result()
        done = self.count == 2
        return obs, 0.0, done and self.end == "terminated", done and self.end == "truncated", info


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("end", ["", "truncated"])
def test_no_legal_action_is_refused_where_one_is_needed(end: str, autoreset: Any) -> None:
    config = EnvConfig(id="DeadEnd", kwargs={"end": end}, autoreset=autoreset, num_envs=2)
    batch = make_env_batch(config, factory=DeadEnd)
    batch.reset(seed=0)
    batch.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(EnvError) as caught:
        batch.step(np.zeros(2, dtype=np.int64))
    assert str(caught.value) == (
        "environment DeadEnd: env 0 has no legal action after step 2 of its episode "
        "(info['action_mask'] is missing or all zero); give it one, or terminate the episode there"
    )


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("as_list", [False, True])
def test_a_terminal_observation_needs_no_legal_action(autoreset: Any, as_list: bool) -> None:
    config = EnvConfig(kwargs={"end": "terminated", "as_list": as_list}, autoreset=autoreset, num_envs=2)
    batch = make_env_batch(config, factory=DeadEnd)
    batch.reset(seed=0)
    masks = [batch.step(np.zeros(2, dtype=np.int64)).next_action_mask for _ in range(2)]
    assert masks[0] is not None
    assert masks[1] is not None
    # [True, False] as given; then all True, so that a maximum over it is finite times discount 0.
    assert masks[0].tolist() == [[True, False]] * 2
    assert masks[1].tolist() == [[True, True]] * 2


class OffsetActions(gym.Env[Any, Any]):
    """Actions 5, 6, 7; the reward is the action."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(3, start=5)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return np.zeros(1, np.float32), float(action), False, False, {}


def test_discrete_actions_that_do_not_start_at_zero() -> None:
    batch = make_env_batch(EnvConfig(num_envs=3), factory=OffsetActions)
    batch.reset(seed=0)
    assert batch.spec.num_actions == 3
    assert batch.step(np.array([0, 1, 2])).reward.tolist() == [5.0, 6.0, 7.0]


def test_same_seed_same_run_and_other_seed_other_run() -> None:
    def first_obs(seed: int) -> Any:
        return make_env_batch(EnvConfig(id="CartPole-v1", num_envs=2)).reset(seed).tolist()

    assert first_obs(5) == first_obs(5) != first_obs(6)


def test_a_reset_forgets_running_episodes() -> None:
    batch = script_batch(AutoresetMode.NEXT_STEP)
    obs = batch.reset(seed=0)
    for _ in range(3):
        obs = batch.step(choose(obs)).obs
    obs = batch.reset(seed=0)
    steps = []
    for _ in range(3):
        steps.append(batch.step(choose(obs)))
        obs = steps[-1].obs
    assert steps[0].valid.all()
    # Env 0's first episode is 1 + 2 + 4, nothing of the forgotten one.
    assert steps[2].episode_returns[steps[2].episode_envs == 0].tolist() == [7.0]


def test_a_step_before_reset_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match=r"before EnvBatch\.reset"):
        script_batch(AutoresetMode.SAME_STEP).step(np.zeros(NUM_ENVS, dtype=np.int64))


class Careless(gym.vector.VectorEnv[Any, Any, Any]):
    """Two environments whose episodes take two steps. All that the contract leaves open is done in the worst way:
    its arrays are reused, and the step that resets (NEXT_STEP) comes with a NaN reward and the old flags."""

    def __init__(self, autoreset_mode: AutoresetMode) -> None:
        self.num_envs = 2
        self.single_observation_space = gym.spaces.Box(0, 9, (1,), np.float32)
        self.single_action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, 2)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, 2)
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.same_step = autoreset_mode is AutoresetMode.SAME_STEP
        self.obs = np.zeros((2, 1), np.float32)
        self.reward = np.ones(2, np.float32)
        self.terminated = np.zeros(2, np.bool_)
        self.truncated = np.zeros(2, np.bool_)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.obs[:] = 0
        return self.obs, {}

    def step(self, actions: Any) -> Any:
        info: dict[str, Any] = {}
        if self.obs[0, 0] == 2:
            self.obs[:], self.reward[:] = 0, np.nan
            return self.obs, self.reward, self.terminated, self.truncated, info
        self.obs += 1
        self.reward[:] = 1
        self.terminated[0] = self.truncated[1] = self.obs[0, 0] == 2
        if self.same_step and self.terminated[0]:
            # A dense array, as environments written in C++ give it, where Gymnasium's own give one of objects.
            info["final_obs"] = self.obs.copy()
            self.obs[:] = 0
        return self.obs, self.reward, self.terminated, self.truncated, info


@pytest.mark.parametrize(
    ("mode", "valid"),
    [(AutoresetMode.NEXT_STEP, [1, 1, 0, 1, 1, 0, 1]), (AutoresetMode.SAME_STEP, [1, 1, 1, 1, 1, 1, 1])],
)
def test_a_careless_vector_environment_is_tidied_up(mode: AutoresetMode, valid: list[int]) -> None:
    batch = EnvBatch(Careless(mode), EnvSpec("Careless", (1,), "float32", 2))
    batch.reset(seed=0)
    steps = [batch.step(np.zeros(2, dtype=np.int64)) for _ in range(7)]
    assert [step.valid.tolist() for step in steps] == [[bool(flag)] * 2 for flag in valid]
    transitions = [step for step in steps if step.valid.all()]
    num_done = len(transitions) // 2
    # Every other transition ends both episodes, of two steps and return 2 each: env 0's by termination.
    assert [step.next_obs[0, 0] for step in transitions] == ([1, 2] * 4)[: len(transitions)]
    assert [step.terminated.tolist() for step in transitions[1::2]] == [[True, False]] * num_done
    assert [step.truncated.tolist() for step in transitions[1::2]] == [[False, True]] * num_done
    assert [step.episode_returns.tolist() for step in transitions[1::2]] == [[2.0, 2.0]] * num_done
    assert [step.episode_lengths.tolist() for step in transitions[1::2]] == [[2, 2]] * num_done
    for step in [*transitions[0::2], *(step for step in steps if not step.valid.any())]:
        assert not (step.terminated | step.truncated).any()
        assert step.episode_returns.size == 0
        assert step.reward.tolist() == [float(flag) for flag in step.valid]


def test_a_same_step_environment_must_give_the_final_observation() -> None:
    env = Careless(AutoresetMode.SAME_STEP)
    env.same_step = False
    batch = EnvBatch(env, EnvSpec("Careless", (1,), "float32", 2))
    batch.reset(seed=0)
    batch.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(EnvError, match=r"environment Careless: env 0 ended an episode without info\['final_obs'\]"):
        batch.step(np.zeros(2, dtype=np.int64))


def test_a_mask_of_the_wrong_length_is_refused_when_made() -> None:
    class Wrong(DeadEnd):
        action_space = gym.spaces.Discrete(5)

    with pytest.raises(EnvError) as caught:
        make_env_batch(EnvConfig(num_envs=1, id="Wrong"), factory=Wrong)
    assert str(caught.value) == (
        "environment Wrong: info['action_mask'] has shape (2,) for 5 actions; give one flag per action"
    )


def test_a_vector_environment_that_hides_its_mode_is_refused() -> None:
    env = SyncVectorEnv([Script] * 2)
    del env.metadata["autoreset_mode"]
    with pytest.raises(UsageError, match=r"Mine-v0: .*no metadata\['autoreset_mode'\] \(found None\)"):
        EnvBatch(env, EnvSpec("Mine-v0", (4,), "float32", 4))
