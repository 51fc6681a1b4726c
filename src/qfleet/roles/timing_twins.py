"""Timing twins: roles that answer the same calls with the same counts, versions and sizes, and compute nothing.

For an engine that simulates time alone (`engine.compute = "none"`). A role's class names its twin as `timing_twin`.
What a twin says follows the role's own rules: every vector step is one transition an environment, every update one
version; no episode ends, nothing is learned, priorities are all alike. Payloads are of the real size, shared by all.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from qfleet.algos.base import AlgorithmConfig
from qfleet.config import EvaluationConfig
from qfleet.ops.slices import slice_bounds
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.push import Compression, Encoder, Push
from qfleet.types import (
    Array,
    LearnerState,
    ParamSlice,
    ParamSnapshot,
    Progress,
    Receipt,
    Reply,
    SavedFile,
    Transitions,
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a run's payloads hold: the first snapshot, whose arrays all others share."""

    first: ParamSnapshot
    num_moments: int


_SIZES: dict[tuple[str, ...], Sizes] = {}


def sizes_of(blueprint: Blueprint) -> Sizes:
    """Built once for all roles of a run: a thousand networks would be the most costly part of computing nothing."""
    key = (
        str(blueprint.seed),
        blueprint.algo_name,
        blueprint.algo.model_dump_json(),
        blueprint.network.model_dump_json(),
        str(blueprint.spec),
    )
    sizes = _SIZES.get(key)
    if sizes is None:
        network = blueprint.build_network(trainable=False)
        sizes = _SIZES[key] = Sizes(network.snapshot(0), 2 if blueprint.algo.optimizer.name == "adam" else 1)
    return sizes


@lru_cache(maxsize=64)
def blank(shape: tuple[int, ...], dtype: str) -> Array:
    """One array of zeros for all payloads of this shape; read-only."""
    array: Array = np.zeros(shape, dtype)
    array.setflags(write=False)
    return array


def blank_transitions(blueprint: Blueprint, number: int) -> Transitions:
    """`number` transitions of the run's shapes."""
    spec = blueprint.spec
    obs = blank((number, *spec.obs_shape), spec.obs_dtype)
    mask = blank((number, spec.num_actions), "bool") if spec.has_action_mask else None
    floats = blank((number,), "float32")
    return Transitions(obs, blank((number,), "int64"), floats, floats, obs, mask)


def follow_target(config: AlgorithmConfig, before: int, version: int, target_version: int) -> int:
    """At which version the target changed last, once updates have led from `before` to `version`."""
    follows = not config.has_target or config.target_share(before, version) > 0.0
    return version if follows else target_version


class Twin:
    """What all twins share.

    Args:
        blueprint: the run's plan.
        name: the role's name.
    """

    def __init__(self, blueprint: Blueprint, name: str, *_: object) -> None:
        self.blueprint = blueprint
        self.name = name
        self.sizes = sizes_of(blueprint)
        self.version = 0

    def save(self, folder: str, tag: str, previous: list[SavedFile]) -> Receipt:
        """Nothing was computed, so there is nothing to keep."""
        return Receipt(version=self.version)

    def snapshot(self) -> Reply:
        """The first parameters under the present version."""
        first = self.sizes.first
        return Reply(
            Receipt(version=self.version), ParamSnapshot(self.version, first.vector, first.buffers, first.layout_hash)
        )

    def learner_state(self) -> Reply:
        """A state of the real size."""
        first = self.sizes.first
        moments = blank((self.sizes.num_moments, len(first.vector)), "float32")
        state = LearnerState(
            self.version,
            float(self.version),
            first.vector,
            first.buffers,
            first.vector,
            first.buffers,
            moments,
            first.layout_hash,
        )
        return Reply(Receipt(version=self.version), state)

    def take_learner_state(self, state: LearnerState) -> Receipt:
        """Stand where another one stands."""
        self.version = state.version
        return Receipt(version=self.version)

    def published(self, target_version: int, with_target: bool, first: int = 0, end: int | None = None) -> ParamSlice:
        """A slice of the vector as a server or a learner publishes it."""
        sizes = self.sizes
        vector = sizes.first.vector[first:end]
        return ParamSlice(
            self.version,
            first,
            vector,
            vector if with_target else None,
            target_version,
            sizes.first.buffers if first == 0 else blank((0,), "float32"),
            sizes.first.layout_hash,
        )

    def gradients(self, number: int) -> Generator[torch.Tensor, None, None]:
        """`number` yields of the gradient's size, and of the observation statistics' where there are any."""
        gradient = torch.zeros(len(self.sizes.first.vector))
        for _ in range(number):
            yield gradient


class TimedWorker(Twin):
    """Of a worker, and of all its kinds."""

    def collect(self, progress: Progress, num_vector_steps: int) -> Receipt:
        """Every environment gives a transition a step."""
        number = num_vector_steps * self.blueprint.env.num_envs
        return Receipt(version=self.version, num_env_steps=number, num_inserted=number, seconds={"environment": 1.0})

    def train(self, num_updates: int) -> Receipt:
        """`num_updates` versions further."""
        self.version += num_updates
        return Receipt(
            version=self.version,
            num_updates=num_updates,
            num_samples=num_updates * self.blueprint.batch_size,
            seconds={"learner": 1.0},
        )

    def restored(self) -> Receipt:
        """A new life holds nothing."""
        return Receipt(version=self.version, metrics={"num_restored": 0.0})


class TimedGradientWorker(TimedWorker):
    """Of a parameter server's worker; the arguments are GradientWorker's."""

    def __init__(
        self,
        blueprint: Blueprint,
        name: str,
        rank: int = 0,
        num_workers: int = 1,
        num_servers: int = 1,
        compression: Compression = "none",
        top_k_fraction: float = 0.01,
    ) -> None:
        super().__init__(blueprint, name)
        self.pieces = _blank_pushes(len(self.sizes.first.vector), num_servers, compression, top_k_fraction)
        self.num_bytes = sum(piece.num_bytes for piece in self.pieces)
        self.batch_size = blueprint.batch_size

    def collect_with(self, progress: Progress, num_vector_steps: int, *published: ParamSlice) -> Receipt:
        """Pull, then collect."""
        self.version = newest_of(published)
        return self.collect(progress, num_vector_steps)

    def gradient(self, *published: ParamSlice) -> Reply:
        """A push of the real size."""
        return self.local_update(1, *published)

    def local_update(self, num_updates: int, *published: ParamSlice) -> Reply:
        """Likewise."""
        self.version = newest_of(published)
        receipt = Receipt(
            version=self.version,
            num_samples=num_updates * self.batch_size,
            num_bytes=self.num_bytes,
            seconds={"learner": 1.0},
        )
        return Reply(receipt, self.pieces if len(self.pieces) > 1 else self.pieces[0])

    def restore(self, incarnation: int, tag: str, sources: object, *published: ParamSlice) -> Receipt:
        """Begin a new life."""
        return self.restored()


class TimedRank(TimedWorker):
    """Of an all-reduce rank."""

    def train_together(self, num_updates: int, rank: int, world_size: int) -> Generator[torch.Tensor, None, Receipt]:
        """As many means as updates."""
        yield from self.gradients(num_updates)
        return self.train(num_updates)

    def standing(self) -> Receipt:
        """Which version this rank is at."""
        return Receipt(version=self.version)

    def stand_at(self, version: int) -> Receipt:
        """Count on from `version`."""
        self.version = version
        return self.standing()

    def restore(self, incarnation: int, tag: str, folder: str, state: object, sources: object) -> Receipt:
        """Begin a new life."""
        return self.restored()


class TimedServer(Twin):
    """Of a parameter server; the arguments are ParameterServer's."""

    def __init__(
        self, blueprint: Blueprint, name: str, index: int = 0, num_servers: int = 1, is_difference: bool = False
    ) -> None:
        super().__init__(blueprint, name)
        self.first, self.end = slice_bounds(len(self.sizes.first.vector), num_servers)[index]
        self.target_version = self.num_staged = 0

    def update(self, tickets: list[object], rate_scale: float, num_updates: int, *pushes: object) -> Reply:
        """Stage and commit in one."""
        self.num_staged = len(pushes)
        return self.commit(1.0, rate_scale, num_updates)

    def stage(self, tickets: list[object], *pushes: object) -> Receipt:
        """Every push is fresh."""
        self.num_staged = len(pushes)
        return Receipt(version=self.version, metrics={"norm": 1.0, "num_refused": 0.0})

    def commit(self, norm: float, rate_scale: float, num_updates: int) -> Reply:
        """One version further by what is staged."""
        if not self.num_staged:
            return self.publish()
        self.num_staged, before = 0, self.version
        self.version += num_updates
        self.target_version = follow_target(self.blueprint.algo, before, self.version, self.target_version)
        return self.publish(with_target=self.target_version == self.version)

    def publish(self, with_target: bool = True) -> Reply:
        """This slice at its present version."""
        metrics = {"target_version": float(self.target_version)}
        part = self.published(self.target_version, with_target, self.first, self.end)
        return Reply(Receipt(version=self.version, metrics=metrics), part)

    def assemble(self, *slices: ParamSlice) -> Reply:
        """One snapshot from all servers' slices."""
        return self.snapshot()

    def restore(
        self, acknowledged: object, folder: str, files: object, newest: ParamSlice, target: ParamSlice
    ) -> Reply:
        """Begin a new life at the newest published version."""
        self.version, self.target_version = newest.version, newest.target_version
        reply = self.publish()
        reply.receipt.metrics["moments_age"] = 0.0
        return reply


class TimedEvaluator:
    """Of the evaluator: every episode gives 0."""

    def __init__(self, blueprints: Mapping[str, Blueprint], config: EvaluationConfig) -> None:
        self.config = config

    def evaluate(self, env: str, snapshot: ParamSnapshot, num_episodes: int, seed: int) -> Receipt:
        """No episode is played."""
        return Receipt(
            version=snapshot.version, episode_returns=[0.0] * num_episodes, episode_lengths=[1] * num_episodes
        )


def newest_of(published: tuple[ParamSlice, ...]) -> int:
    """The newest version among slices, one of which may be there for its target alone."""
    return published[0].version if len(published) == 1 else max([part.version for part in published])


def _blank_pushes(size: int, num_servers: int, compression: Compression, fraction: float) -> list[Push]:
    """What a worker pushes, shared by all of them."""
    key = (size, num_servers, compression, fraction)
    if key not in _PUSHES:
        encoder = Encoder(compression, fraction, slice_bounds(size, num_servers))
        _PUSHES[key] = encoder.encode(np.zeros(size, np.float32), np.zeros(0, np.float32))
    return _PUSHES[key]


_PUSHES: dict[tuple[int, int, str, float], list[Push]] = {}
