"""Everything a role needs to build itself, wherever an engine puts it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from qfleet.algos.base import (
    ActingAlgorithm,
    Algorithm,
    AlgorithmConfig,
    EpochsConfig,
    ReplayAlgorithm,
    ReplayAlgorithmConfig,
    RolloutAlgorithm,
    RolloutConfig,
    TrajectoryAlgorithm,
)
from qfleet.config import ReplayConfig
from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch
from qfleet.envs.source import EnvFactory
from qfleet.envs.vector import EnvBatch
from qfleet.errors import ConfigError
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.path import ComputePath, choose_path
from qfleet.networks.torso import NetworkConfig
from qfleet.replay.buffer import Replay
from qfleet.replay.layout import is_frame_stack, looks_like_frames
from qfleet.replay.storage import RingStorage, Storage, required_bytes
from qfleet.replay.uniform import UniformReplay
from qfleet.seeding import derive_generator, derive_seed
from qfleet.types import EnvSpec, ParamSnapshot


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The run's plan for its roles; it travels by value.

    Attributes:
        env, env_factory: what to step; the factory, if any, wins over env.id.
        spec: the environment's facts, probed once by the experiment.
        algo_name, algo: module name under qfleet.algos, and its section.
        network, replay: their sections.
        seed: the run's seed; roles derive theirs from it by name.
        device: "cpu" or "cuda".
        initial: the first weights, or None for fresh ones.
    """

    env: EnvConfig
    env_factory: EnvFactory | None
    spec: EnvSpec
    algo_name: str
    algo: AlgorithmConfig
    network: NetworkConfig
    replay: ReplayConfig
    seed: int
    device: str = "cpu"
    initial: ParamSnapshot | None = None

    def build_algorithm(self) -> Algorithm:
        """The algorithm with its settings."""
        module = importlib.import_module(f"qfleet.algos.{self.algo_name}")
        algorithm: Algorithm = module.Algorithm(self.algo)
        return algorithm

    def build_replay_algorithm(self) -> ReplayAlgorithm:
        """The same, for a role that learns from replay."""
        assert isinstance(self.algo, ReplayAlgorithmConfig), f"{self.algo_name} does not learn from replay"
        return cast(ReplayAlgorithm, self.build_algorithm())

    def build_acting_algorithm(self) -> ActingAlgorithm:
        """The same, for a role that collects rollouts."""
        assert isinstance(self.algo, RolloutConfig), f"{self.algo_name} does not learn from rollouts"
        return cast(ActingAlgorithm, self.build_algorithm())

    def build_rollout_algorithm(self) -> RolloutAlgorithm:
        """The same, for a role that learns from minibatches of rollouts."""
        assert isinstance(self.algo, EpochsConfig), f"{self.algo_name} does not learn from minibatches of rollouts"
        return cast(RolloutAlgorithm, self.build_algorithm())

    def build_trajectory_algorithm(self) -> TrajectoryAlgorithm:
        """The same, for a role that learns from whole trajectories."""
        algorithm = self.build_algorithm()
        assert algorithm.learns_from == "trajectories", f"{self.algo_name} does not learn from trajectories"
        return cast(TrajectoryAlgorithm, algorithm)

    @property
    def replay_algo(self) -> ReplayAlgorithmConfig:
        """The [algo] section of an algorithm that learns from replay."""
        assert isinstance(self.algo, ReplayAlgorithmConfig), f"{self.algo_name} does not learn from replay"
        return self.algo

    @property
    def learns_from_rollouts(self) -> bool:
        """Whether a worker's replay is its present rollout."""
        return isinstance(self.algo, EpochsConfig)

    @property
    def batch_size(self) -> int:
        """Samples of one update of one worker: as configured, or a minibatch of its rollout."""
        if isinstance(self.algo, EpochsConfig):
            return minibatch_size(self.algo, self.env.num_envs)
        return self.replay_algo.batch_size

    @property
    def updates_per_rollout(self) -> int | None:
        """How many updates a rollout is good for; None where replay is learned from."""
        algo = self.algo
        return algo.num_epochs * algo.num_minibatches if isinstance(algo, EpochsConfig) else None

    def vector_steps(self, collect_steps: int) -> int:
        """Vector steps of one `collect` call: as the strategy says, but a rollout is made whole."""
        return self.algo.rollout_steps if isinstance(self.algo, RolloutConfig) else collect_steps

    def build_module(self) -> nn.Module:
        """The network's layers with the run's first weights: the same ones in every role."""
        # torch's initialisers know only the global generator, so it is borrowed and given back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, "network"))
            return self.build_algorithm().build_network(self.network, self.spec)

    def compute_path(self) -> ComputePath:
        """How networks are computed on this machine."""
        return choose_path(self.network, self.build_module(), self.device)

    def compile_update(self) -> None:
        """Have torch.compile do its work now, for the networks and the batch size of this run."""
        if isinstance(self.algo, EpochsConfig | ReplayAlgorithmConfig):
            obs = torch.zeros(self.batch_size, *self.spec.obs_shape, dtype=getattr(torch, self.spec.obs_dtype))
            network, obs = self.build_network(), obs.to(self.device)
            network.backpropagate(obs, lambda output: (torch.zeros_like(output), None))
            if self.algo.has_target:
                network.infer(obs)
                copy_network(network).infer(obs)

    def build_network(self, *, trainable: bool = True) -> FlatNetwork:
        """A network with the run's first weights: the same ones in every role."""
        module = self.build_module()
        path = choose_path(self.network, module, self.device)
        network = FlatNetwork(module, self.device, trainable=trainable, path=path)
        if self.initial is not None:
            network.load(self.initial)
        return network

    def build_envs(self, num_envs: int | None = None) -> EnvBatch:
        """A batch of environments; as many as the config says unless told otherwise."""
        return make_env_batch(self.env, num_envs=num_envs, factory=self.env_factory)

    def share_replay(self, num_parts: int) -> Blueprint:
        """The plan for one of `num_parts` roles that hold the replay, and its warm-up, between them."""
        if self.learns_from_rollouts:  # each has a rollout of its own, which cannot be cut
            return self
        capacity, warm_up = -(-self.replay.capacity // num_parts), -(-self.replay.min_transitions // num_parts)
        replay = self.replay.model_copy(update={"capacity": capacity, "min_transitions": warm_up})
        return dataclasses.replace(self, replay=replay)

    def build_replay(self, name: str) -> Replay:
        """An empty replay of the configured kind for the role called `name`."""
        generator, capacity = derive_generator(self.seed, name, "replay"), self.replay.capacity
        directory = replay_directory(self.replay)
        storage: Storage | None = None
        if stores_frames_once(self.replay, self.spec):
            from qfleet.replay.frames import FrameStorage  # loads numba, which a uniform replay can do without

            is_compressed = self.replay.compression is not None
            storage = FrameStorage(capacity, self.spec, directory=directory, is_compressed=is_compressed)
        elif directory is not None:
            storage = RingStorage(capacity, self.spec, directory)
        if self.replay.sampler == "uniform":
            return UniformReplay(capacity, self.spec, generator, storage=storage)
        from qfleet.replay.prioritized import PrioritizedReplay  # loads numba

        return PrioritizedReplay(capacity, self.spec, generator, self.replay.priority_exponent, storage=storage)


def minibatch_size(algo: EpochsConfig, num_envs: int) -> int:
    """Rows of one of `num_minibatches` equal parts of a rollout of `num_envs` environments.

    Raises:
        ConfigError: they cannot be equal.
    """
    num_rows = algo.rollout_steps * num_envs
    if num_rows % algo.num_minibatches:
        raise ConfigError(
            f"algo.num_minibatches = {algo.num_minibatches}: a rollout of algo.rollout_steps * env.num_envs = "
            f"{algo.rollout_steps} * {num_envs} = {num_rows} steps cannot be cut into so many equal parts; "
            "choose a divisor of it"
        )
    return num_rows // algo.num_minibatches


def pace_of(algo: AlgorithmConfig, replay: ReplayConfig, num_envs: int) -> ReplayConfig:
    """The replay section by which a run is paced.

    Where a worker's replay is its present rollout, that holds one rollout of `num_envs` environments and has each of
    its rows trained on `num_epochs` times: every rollout allows exactly num_epochs * num_minibatches updates. A
    trajectory that travels to a learner is trained on once.

    Raises:
        ConfigError: the rollout cannot be cut into `num_minibatches`.
    """
    if not isinstance(algo, RolloutConfig):
        return replay
    num_rows, num_epochs = algo.rollout_steps * num_envs, 1
    if isinstance(algo, EpochsConfig):
        num_rows, num_epochs = minibatch_size(algo, num_envs) * algo.num_minibatches, algo.num_epochs
    paced = {"capacity": num_rows, "min_transitions": 0, "samples_per_insert": float(num_epochs)}
    return ReplayConfig().model_copy(update=paced)


def copy_network(network: FlatNetwork) -> FlatNetwork:
    """A frozen twin with its own vectors (a target network)."""
    twin = FlatNetwork(copy.deepcopy(network.module), network.vector.device, trainable=False, path=network.path)
    if network.layout_hash != twin.layout_hash:
        raise AssertionError("a copy has another layout")
    return twin


def replay_bytes(config: ReplayConfig, spec: EnvSpec) -> int:
    """Bytes in memory of a full replay, what it draws by included."""
    directory = replay_directory(config)
    if stores_frames_once(config, spec):
        from qfleet.replay.frames import required_frame_bytes  # loads numba

        is_compressed = config.compression is not None
        rows = required_frame_bytes(config.capacity, spec, directory=directory, is_compressed=is_compressed)
    else:
        rows = required_bytes(config.capacity, spec) if directory is None else 0
    if config.sampler == "uniform":
        return rows
    from qfleet.replay.sum_tree import tree_bytes  # loads numba

    return rows + tree_bytes(config.capacity)


def replay_directory(config: ReplayConfig) -> Path | None:
    """Where observations lie in a file; None keeps them in memory."""
    return None if config.directory is None else Path(config.directory)


def disk_bytes(config: ReplayConfig, spec: EnvSpec) -> int:
    """Bytes of the file in which a replay keeps its observations; 0 without one."""
    if config.directory is None:
        return 0
    if stores_frames_once(config, spec):
        from qfleet.replay.frames import disk_frame_bytes  # loads numba

        return disk_frame_bytes(config.capacity, spec)
    return required_bytes(config.capacity, spec)


def stores_frames_once(config: ReplayConfig, spec: EnvSpec) -> bool:
    """Whether replay keeps each frame once: as configured, "auto" where observations look like stacks of frames.

    Raises:
        ConfigError: it was asked for, or frames are to be compressed, and observations are no stacks of frames.
    """
    if config.compression is not None and (config.directory is not None or config.store_frames_once is False):
        other = "directory" if config.directory is not None else "store_frames_once"
        raise ConfigError(
            f"replay.compression = {config.compression!r} is for frames that are stored once, in memory; "
            f"leave it out, or replay.{other}"
        )
    if config.store_frames_once == "auto" and config.compression is None:
        return looks_like_frames(spec)
    if config.store_frames_once and not is_frame_stack(spec):  # "auto" comes here where frames are to be compressed
        field, fix = "replay.store_frames_once", "set it to false"
        if config.compression is not None:
            field, fix = f"replay.compression = {config.compression!r}", "leave it out"
        raise ConfigError(
            f"{field}: observations of {spec.env_id} are {spec.obs_dtype} {list(spec.obs_shape)}, "
            f"not stacks of frames (uint8 [K, H, W]); {fix}"
        )
    return bool(config.store_frames_once)
