"""The n-step adder: small numbers by hand, then random scripts against one Python loop per environment."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qfleet.errors import EnvError
from qfleet.replay.n_step import NStepAdder
from qfleet.types import EnvSpec, EnvStep, Transitions

SPEC = EnvSpec("Scripted-v0", (1,), "float32", 4)
MASKED = EnvSpec("Scripted-v0", (1,), "float32", 4, has_action_mask=True)


def make_step(next_obs, reward, terminated=None, truncated=None, valid=None, mask=None) -> EnvStep:
    num = len(reward)
    next_obs = np.array(next_obs, np.float32)[:, None]
    return EnvStep(
        next_obs=next_obs,
        reward=np.array(reward, np.float32),
        terminated=np.zeros(num, bool) if terminated is None else np.array(terminated, bool),
        truncated=np.zeros(num, bool) if truncated is None else np.array(truncated, bool),
        valid=np.ones(num, bool) if valid is None else np.array(valid, bool),
        obs=np.full_like(next_obs, 99.0),  # a decoy: the next episode's observation is never a successor
        next_action_mask=mask,
        episode_returns=np.zeros(0),
        episode_lengths=np.zeros(0, np.int64),
        episode_envs=np.zeros(0, np.int64),
    )


def rows(transitions: Transitions) -> list[tuple[float, int, float, float, float]]:
    """(obs, action, reward, discount, next_obs) per transition."""
    columns = (transitions.obs[:, 0], transitions.action, transitions.reward, transitions.discount)
    return list(zip(*(column.tolist() for column in (*columns, transitions.next_obs[:, 0])), strict=True))


def add(adder: NStepAdder, obs, actions, step: EnvStep):
    return rows(adder.add(np.array(obs, np.float32)[:, None], np.array(actions, np.int64), step))


def test_three_steps_by_hand():
    adder = NStepAdder(2, SPEC, n_step=3, gamma=0.5)
    assert add(adder, [10, 20], [0, 1], make_step([11, 21], [1, -8])) == []
    assert add(adder, [11, 21], [2, 3], make_step([12, 22], [2, 4])) == []
    # environment 0: 1 + 2/2 + 4/4 = 3; environment 1: -8 + 4/2 + 16/4 = -2; both bootstrap with 1/8
    assert add(adder, [12, 22], [3, 3], make_step([13, 23], [4, 16])) == [
        (10.0, 0, 3.0, 0.125, 13.0),
        (20.0, 1, -2.0, 0.125, 23.0),
    ]
    # 2 + 4/2 + 8/4 = 6; 4 + 16/2 + 0/4 = 12
    assert add(adder, [13, 23], [0, 0], make_step([14, 24], [8, 0])) == [
        (11.0, 2, 6.0, 0.125, 14.0),
        (21.0, 3, 12.0, 0.125, 24.0),
    ]


def test_termination_closes_all_windows_without_bootstrap_and_truncation_with():
    adder = NStepAdder(2, SPEC, n_step=3, gamma=0.5)
    add(adder, [10, 20], [0, 1], make_step([11, 21], [1, 1]))
    # windows of two steps, then of one: 1 + 2/2 = 2 and 2; 1 + 4/2 = 3 and 4. A truncation keeps gamma^k, from the
    # final observation 22 and not from the decoy 99 that the next episode begins with
    closing = make_step([12, 22], [2, 4], terminated=[True, False], truncated=[False, True])
    assert add(adder, [11, 21], [2, 3], closing) == [
        (10.0, 0, 2.0, 0.0, 12.0),
        (20.0, 1, 3.0, 0.25, 22.0),
        (11.0, 2, 2.0, 0.0, 12.0),
        (21.0, 3, 4.0, 0.5, 22.0),
    ]
    # The reset step carries decoys and opens no window in environment 0; environment 1 plays on at once.
    assert add(adder, [99, 30], [3, 0], make_step([98, 31], [97, 1], valid=[False, True])) == []
    assert add(adder, [50, 31], [0, 0], make_step([51, 32], [1, 1])) == []
    # environment 1 has a full window (1 + 1/2 + 1/4), environment 0 has not
    assert add(adder, [51, 32], [1, 1], make_step([52, 33], [1, 1])) == [(30.0, 0, 1.75, 0.125, 33.0)]
    assert add(adder, [52, 33], [1, 1], make_step([53, 34], [1, 1])) == [
        (50.0, 0, 1.75, 0.125, 53.0),
        (31.0, 0, 1.75, 0.125, 34.0),
    ]


@pytest.mark.parametrize("n_step", [1, 2])
def test_both_flags_at_once_is_a_termination(n_step):
    adder = NStepAdder(1, SPEC, n_step, gamma=0.5)
    closing = make_step([11], [3], terminated=[True], truncated=[True])
    assert add(adder, [10], [2], closing) == [(10.0, 2, 3.0, 0.0, 11.0)]


def test_one_step_leaves_out_invalid_environments():
    adder = NStepAdder(3, SPEC, n_step=1, gamma=0.9)
    step = make_step([11, 98, 31], [1, 97, 3], truncated=[True, False, False], valid=[True, False, True])
    discount = pytest.approx(0.9, rel=1e-6)
    assert add(adder, [10, 99, 30], [0, 1, 2], step) == [
        (10.0, 0, 1.0, discount, 11.0),
        (30.0, 2, 3.0, discount, 31.0),
    ]


def test_an_invalid_step_amid_an_episode_drops_its_open_windows():
    adder = NStepAdder(1, SPEC, n_step=2, gamma=0.5)
    add(adder, [10], [0], make_step([11], [1]))
    assert add(adder, [99], [1], make_step([98], [97], valid=[False])) == []
    assert add(adder, [20], [2], make_step([21], [1])) == []
    assert add(adder, [21], [3], make_step([22], [1])) == [(20.0, 2, 1.5, 0.25, 22.0)]


def test_flush_closes_open_windows_as_a_truncation():
    adder = NStepAdder(2, SPEC, n_step=3, gamma=0.5)
    add(adder, [10, 99], [0, 1], make_step([11, 98], [2, 97], valid=[True, False]))
    add(adder, [11, 21], [2, 3], make_step([12, 22], [4, 8]))
    flushed = adder.flush(np.array([[12.0], [22.0]], np.float32))
    assert rows(flushed) == [(10.0, 0, 4.0, 0.25, 12.0), (11.0, 2, 4.0, 0.5, 12.0), (21.0, 3, 8.0, 0.5, 22.0)]
    assert len(adder.flush(np.zeros((2, 1), np.float32))) == 0
    assert add(adder, [40, 50], [0, 0], make_step([41, 51], [1, 1])) == []  # nothing joined across the flush


def test_masks_travel_with_their_observation():
    adder = NStepAdder(2, MASKED, n_step=2, gamma=0.5)
    masks = np.array([[True, False, True, False], [False, True, True, True]])
    obs, actions = np.zeros((2, 1), np.float32), np.zeros(2, np.int64)
    adder.add(obs, actions, make_step([1, 2], [0, 0], mask=~masks))
    got = adder.add(obs, actions, make_step([1, 2], [0, 0], terminated=[True, False], mask=masks))
    np.testing.assert_array_equal(got.next_action_mask, masks[[0, 1, 0]])
    np.testing.assert_array_equal(adder.flush(obs, ~masks).next_action_mask, ~masks[[1]])
    with pytest.raises(EnvError, match="next_action_mask"):
        adder.add(obs, actions, make_step([1, 2], [0, 0]))
    with pytest.raises(EnvError, match="action_mask"):
        adder.flush(obs)


@pytest.mark.parametrize(("n_step", "gamma"), [(0, 0.9), (1, 1.1), (1, -0.1)])
def test_ranges_are_checked(n_step, gamma):
    with pytest.raises(ValueError, match="n_step must be at least 1"):
        NStepAdder(1, SPEC, n_step, gamma)


class NaiveAdder:
    """One list of open windows per environment; each window is a list of (obs, action, reward)."""

    def __init__(self, num_envs: int, n_step: int, gamma: float) -> None:
        self.n_step, self.gamma = n_step, gamma
        self.windows: list[list[tuple[float, int, list[float]]]] = [[] for _ in range(num_envs)]

    def add(self, obs, actions, step):
        closed = []
        for env, windows in enumerate(self.windows):
            if not step.valid[env]:
                windows.clear()
                continue
            windows.append((float(obs[env]), int(actions[env]), []))
            for window in windows:
                window[2].append(float(step.reward[env]))
            ended = step.terminated[env] or step.truncated[env]
            while windows and (ended or len(windows[0][2]) == self.n_step):
                closed.append((env, self.close(windows.pop(0), step.terminated[env], float(step.next_obs[env, 0]))))
        return self.ordered(closed)

    def flush(self, obs):
        closed = []
        for env, windows in enumerate(self.windows):
            closed += [(env, self.close(window, False, float(obs[env]))) for window in windows]
            windows.clear()
        return self.ordered(closed)

    def close(self, window, terminated, next_obs):
        obs, action, rewards = window
        total = sum(self.gamma**age * reward for age, reward in enumerate(rewards))
        discount = 0.0 if terminated else self.gamma ** len(rewards)
        return len(rewards), (obs, action, total, discount, next_obs)

    @staticmethod
    def ordered(closed):
        return [row for _, (_, row) in sorted(closed, key=lambda item: (-item[1][0], item[0]))]


@given(
    num_envs=st.integers(1, 5),
    n_step=st.integers(1, 5),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    end_chance=st.sampled_from([0.0, 0.1, 0.5]),
    reset_steps=st.booleans(),
    interrupt=st.sampled_from(["nothing", "flush", "reload"]),
    seed=st.integers(0, 10**6),
)
def test_equals_one_loop_per_environment(num_envs, n_step, gamma, end_chance, reset_steps, interrupt, seed):
    generator = np.random.default_rng(seed)
    adder, naive = NStepAdder(num_envs, SPEC, n_step, gamma), NaiveAdder(num_envs, n_step, gamma)
    resetting = np.zeros(num_envs, bool)
    for time in range(25):
        obs = time * 100.0 + np.arange(num_envs)
        actions = generator.integers(0, 4, num_envs)
        terminated = generator.random(num_envs) < end_chance
        truncated = generator.random(num_envs) < end_chance
        reward = generator.integers(-8, 8, num_envs)
        step = make_step(obs + 0.5, reward, terminated, truncated, ~resetting)
        compare(add(adder, obs, actions, step), naive.add(obs, actions, step))
        if reset_steps:
            resetting = (terminated | truncated) & ~resetting
        if time % 7 == 6 and interrupt == "flush":
            compare(rows(adder.flush(obs.astype(np.float32)[:, None])), naive.flush(obs))
        if time % 7 == 6 and interrupt == "reload":
            state = adder.state_dict()
            adder = NStepAdder(num_envs, SPEC, n_step, gamma)
            adder.load_state_dict(state)


def compare(got, want):
    assert len(got) == len(want)
    if want:
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-6, atol=1e-6)


def test_results_do_not_change_with_later_steps():
    adder = NStepAdder(1, SPEC, n_step=2, gamma=0.5)
    add(adder, [10], [0], make_step([11], [1]))
    kept = adder.add(np.array([[11.0]], np.float32), np.array([1]), make_step([12], [1]))
    before = rows(kept)
    for time in range(4):
        add(adder, [time], [2], make_step([77], [88]))
    assert rows(kept) == before


@pytest.mark.parametrize(("num_envs", "n_step"), [(2, 3), (3, 2)])
def test_state_of_another_shape_is_refused(num_envs, n_step):
    state = NStepAdder(2, SPEC, 2, 0.9).state_dict()
    with pytest.raises(ValueError, match="n-step state"):
        NStepAdder(num_envs, SPEC, n_step, 0.9).load_state_dict(state)


def test_types_are_those_of_transitions():
    adder = NStepAdder(2, SPEC, n_step=2, gamma=0.5)
    add(adder, [1, 2], [0, 0], make_step([2, 3], [1, 1]))
    plain = adder.add(np.zeros((2, 1), np.float32), np.zeros(2, np.int64), make_step([2, 3], [1, 1]))
    general = adder.flush(np.zeros((2, 1), np.float32))
    for transitions in (plain, general):
        types = {field.name: getattr(transitions, field.name) for field in dataclasses.fields(transitions)}
        assert types.pop("next_action_mask") is None
        assert {name: value.dtype.name for name, value in types.items()} == {
            "obs": "float32",
            "action": "int64",
            "reward": "float32",
            "discount": "float32",
            "next_obs": "float32",
        }
