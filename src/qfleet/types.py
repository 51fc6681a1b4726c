"""The values that travel between floors: environment facts, transitions, rollouts, samples, snapshots.

Arrays are batched: the first axis is the batch (N or B transitions, E environments). O stands for the
observation's own dimensions, A for the number of actions, T for time. Floor 0: imports nothing of qfleet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """What training needs to know about an environment.

    Attributes:
        env_id: the name it was made from.
        obs_shape: O, the shape of one observation after wrappers.
        obs_dtype: numpy dtype name of an observation ("float32", "uint8", "bool").
        num_actions: A, after flattening or discretising.
        has_action_mask: whether `info["action_mask"]` (bool [A], True = legal) comes with each observation.
        max_episode_steps: the time limit in env steps, None if there is none.
        return_threshold: the return at which the environment's registration calls it solved, None if unknown.
        offers_state: whether its state can be saved; else a checkpoint restarts its episodes.
        is_native: whether it has its own vector version, so that many copies step at about the cost of one.
        frames_per_step: frames of the game that one env step shows (its frame skip).
    """

    env_id: str
    obs_shape: tuple[int, ...]
    obs_dtype: str
    num_actions: int
    has_action_mask: bool = False
    max_episode_steps: int | None = None
    return_threshold: float | None = None
    is_native: bool = False
    offers_state: bool = False
    frames_per_step: int = 1


@dataclass(frozen=True, slots=True)
class EnvStep:
    """What one vector step of E environments gave, the same in every autoreset mode.

    `next_obs` is always the true successor of the observation that was acted on, also at an episode's end;
    `obs` is what to act on next (the new episode's first observation where one has begun).

    Attributes:
        next_obs: [E, *O].
        reward: float32 [E].
        terminated: bool [E], the MDP ended: no bootstrap.
        truncated: bool [E], cut off (time limit): bootstrap from `next_obs`.
        valid: bool [E]; False where the environment only used the step to reset itself: no transition there.
        obs: [E, *O].
        next_action_mask: bool [E, A] of `next_obs`, or None.
        episode_returns: float64 [K], undiscounted raw returns of the K episodes that ended at this step.
        episode_lengths: int64 [K], their lengths in env steps.
        episode_envs: int64 [K], which of the E environments they ended in.
    """

    next_obs: Array
    reward: npt.NDArray[np.float32]
    terminated: BoolArray
    truncated: BoolArray
    valid: BoolArray
    obs: Array
    next_action_mask: BoolArray | None
    episode_returns: npt.NDArray[np.float64]
    episode_lengths: IntArray
    episode_envs: IntArray


@dataclass(frozen=True, slots=True)
class Transitions:
    """N (n-step) transitions, the unit of replay.

    Attributes:
        obs: [N, *O].
        action: int64 [N].
        reward: float32 [N], the n-step return sum_k gamma^k r_k.
        discount: float32 [N], what the bootstrap value is multiplied by: gamma^k after k steps, 0 after a termination.
        next_obs: [N, *O], the observation k steps later (the true final one at an episode's end).
        next_action_mask: bool [N, A] of `next_obs`, or None where the environment has no masks.
    """

    obs: Array
    action: IntArray
    reward: npt.NDArray[np.float32]
    discount: npt.NDArray[np.float32]
    next_obs: Array
    next_action_mask: BoolArray | None = None

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True, slots=True)
class Sample:
    """B transitions drawn from replay, with what the learner needs to weigh them.

    Attributes:
        keys: int64 [B]; a key names one insertion for ever, so a late priority never hits a reused slot.
        transitions: the B transitions.
        probabilities: float64 [B], the chance that one draw picks this transition.
        num_transitions: how many transitions could have been drawn.
    """

    keys: IntArray
    transitions: Transitions
    probabilities: npt.NDArray[np.float64]
    num_transitions: int


@dataclass(frozen=True, slots=True)
class Trajectories:
    """One rollout: T vector steps of E environments, time first; the unit of learning without a replay.

    A truncation's bootstrap is folded in when it is collected: its reward holds gamma * V(true final observation) and
    its discount is 0. So what stands behind it is a recursion over reward, discount and value alone.

    Attributes:
        obs: [T, E, *O], what was acted on.
        action: int64 [T, E].
        reward: float32 [T, E].
        discount: float32 [T, E], gamma; 0 where the episode ended at this step, and where `valid` is False.
        valid: bool [T, E]; False where the environment only used the step to reset itself: it must weigh nothing.
        log_prob: float32 [T, E], of the action under the behaviour policy; zeros where the algorithm has none.
        value: float32 [T + 1, E], what the behaviour network said of each observation acted on and of the one after
            the last step: V(s), or max_a Q(s, a).
        last_obs: [E, *O], the observation after the last step.
        action_mask: bool [T, E, A], True = legal at `obs`; None without masks.
        last_action_mask: bool [E, A] at `last_obs`, or None.
        version: of the parameters that acted.
    """

    obs: Array
    action: IntArray
    reward: npt.NDArray[np.float32]
    discount: npt.NDArray[np.float32]
    valid: BoolArray
    log_prob: npt.NDArray[np.float32]
    value: npt.NDArray[np.float32]
    last_obs: Array
    action_mask: BoolArray | None = None
    last_action_mask: BoolArray | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """B steps of a rollout with what the algorithm has made of them; rows are independent of each other.

    Attributes:
        obs: [B, *O].
        action: int64 [B].
        weight: float32 [B]; 0 where the environment only reset itself. Over a whole rollout the mean is 1.
        target: float32 [B], what the value of `obs` (or of `obs` and `action`) should be.
        advantage: float32 [B] of `action`; None for an algorithm without a policy of its own.
        action_mask: bool [B, A], True = legal at `obs`; None without masks.
    """

    obs: Array
    action: IntArray
    weight: npt.NDArray[np.float32]
    target: npt.NDArray[np.float32]
    advantage: npt.NDArray[np.float32] | None = None
    action_mask: BoolArray | None = None

    def __len__(self) -> int:
        return len(self.action)

    def rows(self, index: IntArray | slice) -> RolloutBatch:
        """Some of the rows; a view where `index` is a slice."""
        return RolloutBatch(
            obs=self.obs[index],
            action=self.action[index],
            weight=self.weight[index],
            target=self.target[index],
            advantage=None if self.advantage is None else self.advantage[index],
            action_mask=None if self.action_mask is None else self.action_mask[index],
        )


@dataclass(frozen=True, slots=True)
class ParamSnapshot:
    """An immutable copy of a network's state. Everything computed from it carries its version.

    Attributes:
        version: number of optimizer updates that led to it.
        vector: float32 [P], the parameters; read-only.
        buffers: float32 [F], the float buffers (observation statistics); read-only.
        layout_hash: SHA-256 of names and shapes; loading into another layout is refused.
    """

    version: int
    vector: npt.NDArray[np.float32]
    buffers: npt.NDArray[np.float32]
    layout_hash: str


@dataclass(frozen=True, slots=True)
class LearnerState:
    """All that a learner shares with its equals, from which another one goes on as it would; immutable.

    Attributes:
        version: number of optimizer updates that led to it.
        optimizer_steps: what the optimizer's own corrections count.
        online, target: float32 [P], the parameters; read-only.
        online_buffers, target_buffers: float32 [F], the float buffers (observation statistics); read-only.
        moments: float32 [M, P], the optimizer's; read-only.
        layout_hash: as in ParamSnapshot.
    """

    version: int
    optimizer_steps: float
    online: npt.NDArray[np.float32]
    online_buffers: npt.NDArray[np.float32]
    target: npt.NDArray[np.float32]
    target_buffers: npt.NDArray[np.float32]
    moments: npt.NDArray[np.float32]
    layout_hash: str


@dataclass(frozen=True, slots=True)
class ParamSlice:
    """What a parameter server publishes: its contiguous slice of the vectors, immutable.

    Attributes:
        version: number of optimizer updates that led to it.
        offset: where in the parameter vector the slice begins.
        vector: float32 [p], the slice of the online parameters; read-only.
        target: float32 [p], the slice of the target's, or None where it has not changed since the version before.
        target_version: version at which the target last changed.
        buffers: float32 [F], float buffers as the workers last reported them; from the first server only, else [0].
        layout_hash: of the whole vector.
    """

    version: int
    offset: int
    vector: npt.NDArray[np.float32]
    target: npt.NDArray[np.float32] | None
    target_version: int
    buffers: npt.NDArray[np.float32]
    layout_hash: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """Names one push, so that it is applied once.

    Attributes:
        worker: who computed it.
        incarnation: which life of the worker.
        sequence: the worker's pushes are numbered.
        version: the parameters that it was computed from.
    """

    worker: str
    incarnation: int
    sequence: int
    version: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The global counters that travel in a call; epsilon, beta and learning-rate schedules follow them."""

    num_env_steps: int = 0
    num_updates: int = 0


@dataclass(slots=True)
class Receipt:
    """The small half of a role's answer, for the coordinator: counts, seconds, metrics. Never arrays of data.

    Attributes:
        version: parameter version that the work was computed from (or produced, for a learner).
        num_env_steps: valid environment steps made.
        num_inserted: transitions inserted into replay.
        num_updates: optimizer updates applied.
        num_samples: transitions trained on.
        episode_returns, episode_lengths: of the training episodes that ended.
        seconds: time by activity ("environment", "inference", "replay", "learner").
        metrics: scalars such as loss and mean Q.
        lags: how old things were when they were used, in versions: "staleness" of the pushes merged, "policy_lag" of
            the transitions inserted, "priority_age" of the priorities written.
        num_bytes: bytes of the payload, where it is pushed over the wire.
        files: files written by `save`.
    """

    version: int = 0
    num_env_steps: int = 0
    num_inserted: int = 0
    num_updates: int = 0
    num_samples: int = 0
    episode_returns: list[float] = field(default_factory=list)
    episode_lengths: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    lags: dict[str, list[int]] = field(default_factory=dict)
    num_bytes: int = 0
    files: list[SavedFile] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SavedFile:
    """One file of a checkpoint: path relative to the checkpoints folder, size in bytes, SHA-256 in hex."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a role's method returns when its answer has both halves; a bare Receipt or None is fine too."""

    receipt: Receipt
    payload: object
