"""Exactly N complete episodes, played in blocks that any number of processes may share; the result is always the same.

    block        a fixed number of copies of the environment, each of which plays exactly one episode
    its seed     derived from the seed of all and the block's number

A vector environment that is stopped after its first N finished episodes gives more short ones than long ones. Here what
counts is settled beforehand: each copy's first episode, however long it takes. Floor 7.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import torch

from qfleet.config import EvaluationConfig
from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch, probe_spec
from qfleet.envs.vector import EnvBatch
from qfleet.errors import QfleetError
from qfleet.evaluation.players import Act, open_player
from qfleet.seeding import derive_seed
from qfleet.types import IntArray

# Copies stepped one by one cost a step each, also those whose episode is over; those of a vector version hardly more.
BLOCK_SINGLE, BLOCK_NATIVE = 16, 64


@dataclass(frozen=True, slots=True)
class Episodes:
    """What was played, in an order that does not depend on who played it.

    Attributes:
        returns: undiscounted raw returns.
        lengths: in env steps.
        actions: int64 [A], how often each action was taken.
    """

    returns: list[float]
    lengths: list[int]
    actions: IntArray


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be played; small, and the same in every process.

    Attributes:
        target: who plays, see players.py.
        env: on what, time limit included.
        num_episodes: N.
        block_size: how many of them are played together.
        seed: of all.
    """

    target: str
    env: EnvConfig
    num_episodes: int
    block_size: int
    seed: int

    @property
    def num_blocks(self) -> int:
        """How many blocks there are; the last one may be smaller."""
        return -(-self.num_episodes // self.block_size)

    def size_of(self, block: int) -> int:
        """Episodes of a block."""
        return min(self.block_size, self.num_episodes - block * self.block_size)


def make_plan(target: str, env: EnvConfig, limits: EvaluationConfig, num_episodes: int, seed: int) -> Plan:
    """A plan for an environment, which gets a time limit where it has none.

    Args:
        target: who plays, see players.py.
        env: on what.
        limits: the time limit.
        num_episodes: N.
        seed: of the episodes; another name than any in training, so that no seed gives the same ones.
    """
    spec = probe_spec(env)
    if spec.max_episode_steps is None:
        env = env.model_copy(update={"max_episode_steps": limits.max_episode_steps})
    block_size = BLOCK_NATIVE if spec.is_native else BLOCK_SINGLE
    return Plan(target, env, num_episodes, block_size, derive_seed(seed, "evaluate"))


def play(plan: Plan, num_workers: int = 1, on_episodes: Callable[[int], None] = lambda num: None) -> Episodes:
    """Play all of it.

    Args:
        plan: what.
        num_workers: processes; 1 plays in this one.
        on_episodes: told how many episodes each block that is done had.

    Raises:
        QfleetError: what a policy or an environment raised, or a process that died.
    """
    blocks = []
    played = _play_here(plan) if min(num_workers, plan.num_blocks) == 1 else _play_in_processes(plan, num_workers)
    for block in played:
        blocks.append(block)
        on_episodes(len(block.returns))
    return Episodes(
        [value for block in blocks for value in block.returns],
        [value for block in blocks for value in block.lengths],
        np.sum([block.actions for block in blocks], axis=0),
    )


def play_once_each(act: Act, envs: EnvBatch, seed: int) -> Episodes:
    """One episode of each copy, from a reset to its end, in the order of the copies."""
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=np.int64)
    actions = np.zeros(envs.spec.num_actions, dtype=np.int64)
    is_playing = np.ones(envs.num_envs, dtype=np.bool_)
    obs = envs.reset(seed)
    while is_playing.any():
        chosen = act(obs, envs.action_mask)
        actions += np.bincount(chosen[is_playing], minlength=len(actions))
        step = envs.step(chosen)
        obs = step.obs
        for env, value, length in zip(step.episode_envs, step.episode_returns, step.episode_lengths, strict=True):
            if is_playing[env]:
                returns[env], lengths[env], is_playing[env] = value, length, False
    return Episodes(returns.tolist(), lengths.tolist(), actions)


class BlockPlayer:
    """Plays blocks of a plan, with environments that are made once for each size.

    Args:
        plan: what.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._player = open_player(plan.target)
        self._batches: dict[int, EnvBatch] = {}

    def play(self, block: int) -> Episodes:
        """The episodes of a block."""
        size = self._plan.size_of(block)
        if size not in self._batches:
            self._batches[size] = make_env_batch(self._plan.env, size)
        seed = derive_seed(self._plan.seed, "block", block)
        envs = self._batches[size]
        return play_once_each(self._player.begin(seed, envs.spec.num_actions), envs, seed)

    def close(self) -> None:
        """Close the environments."""
        for envs in self._batches.values():
            envs.close()


def _play_here(plan: Plan) -> Iterator[Episodes]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: another number may add up in another order
    player = BlockPlayer(plan)
    try:
        for block in range(plan.num_blocks):
            yield player.play(block)
    finally:
        player.close()
        torch.set_num_threads(num_threads)


def _play_in_processes(plan: Plan, num_workers: int) -> Iterator[Episodes]:
    pool = concurrent.futures.ProcessPoolExecutor(
        min(num_workers, plan.num_blocks), multiprocessing.get_context("spawn"), _begin_process
    )
    try:
        yield from pool.map(_play_block, [plan] * plan.num_blocks, range(plan.num_blocks))
    except BrokenProcessPool as error:
        raise QfleetError("a process that played episodes died; try fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process of a terminal: end at once
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


_OPEN: list[BlockPlayer] = []  # in a process of the pool, which plays one plan


def _play_block(plan: Plan, block: int) -> Episodes:
    if not _OPEN:
        _OPEN.append(BlockPlayer(plan))
    return _OPEN[0].play(block)
