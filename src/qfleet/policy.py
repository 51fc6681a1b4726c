"""A trained policy on disk and in use: policy.safetensors with policy.json beside it. Floor 6."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from qfleet.algos.base import infer_action_values
from qfleet.envs.source import find_source
from qfleet.envs.spaces import SingleEnv
from qfleet.errors import CheckpointError, UsageError
from qfleet.networks.noisy import set_mean_only
from qfleet.onnx_policy import OnnxPolicy
from qfleet.ops.declared import as_declared
from qfleet.ops.exploration import greedy
from qfleet.roles.blueprint import Blueprint
from qfleet.run_config import RunConfig, build_config
from qfleet.storage import read_verified, write_file
from qfleet.types import Array, BoolArray, EnvSpec, FloatArray, IntArray, ParamSnapshot, SavedFile
from qfleet.version import __version__

FORMAT = 1


class Policy:
    """The greedy policy of a snapshot.

    Args:
        blueprint: how its network is built.
        snapshot: its parameters.
    """

    def __init__(self, blueprint: Blueprint, snapshot: ParamSnapshot) -> None:
        self.spec = blueprint.spec
        self._env = blueprint.env
        self.snapshot = snapshot
        self._algorithm = blueprint.build_algorithm()
        self._network = blueprint.build_network(trainable=False)
        self._network.load(snapshot)
        set_mean_only(self._network.module, True)

    def q_values(self, obs: Array) -> FloatArray:
        """Action values of one observation [*O] -> [A], or of a batch [B, *O] -> [B, A].

        Raises:
            UsageError: the shape fits neither, or the numbers are not of the declared dtype.
        """
        obs = as_declared(obs, self.spec.obs_dtype)
        is_single = obs.shape == self.spec.obs_shape
        batch = obs[None] if is_single else obs
        if batch.shape[1:] != self.spec.obs_shape:
            raise UsageError(
                f"observation of shape {obs.shape}; this policy takes {self.spec.obs_shape} or a batch of it"
            )
        values = infer_action_values(self._algorithm, self._network, np.ascontiguousarray(batch))
        return values[0] if is_single else values

    def make_env(self) -> SingleEnv:
        """One environment that takes this policy's actions and gives its observations, flattened or discretised alike.

        Raises:
            UsageError: it cannot be made from its name.
        """
        return find_source(self._env).build()

    def act(self, obs: Array, action_mask: BoolArray | None = None) -> int | IntArray:
        """The greedy action of one observation (an int) or of a batch (int64 [B]); illegal actions are left out.

        Actions and observations are those of `make_env`: with env.discretize, MultiDiscrete actions or Dict
        observations they are not the raw environment's.
        """
        values = self.q_values(obs)
        if values.ndim == 1:
            mask = None if action_mask is None else np.asarray(action_mask)[None]
            return int(greedy(values[None], mask)[0])
        return greedy(values, action_mask)


def save_policy(
    folder: Path, config: RunConfig, spec: EnvSpec, snapshot: ParamSnapshot, facts: Mapping[str, object]
) -> None:
    """Write a policy; the JSON, written last, names the weights by SHA-256.

    Args:
        folder: where to.
        config, spec: how to build the network again.
        snapshot: the parameters.
        facts: what is known about it, such as its validation return.
    """
    content = save_tensors({"vector": np.asarray(snapshot.vector), "buffers": np.asarray(snapshot.buffers)})
    weights = write_file(folder, f"policy-{snapshot.version}.safetensors", content)
    description = {
        "format": FORMAT,
        "qfleet_version": __version__,
        "version": snapshot.version,
        "layout_hash": snapshot.layout_hash,
        "weights": {"path": weights.path, "num_bytes": weights.num_bytes, "sha256": weights.sha256},
        "spec": {name: getattr(spec, name) for name in EnvSpec.__slots__},
        "config": config.model_dump(mode="json", by_alias=True, exclude_none=True),
        "facts": facts,
    }
    write_file(folder, "policy.json", json.dumps(description, indent=1).encode())
    for path in folder.glob("policy-*.safetensors"):
        if path.name != weights.path:
            path.unlink()


def read_policy(folder: Path) -> tuple[RunConfig, EnvSpec, ParamSnapshot, dict[str, object]]:
    """What `save_policy` wrote, verified.

    Raises:
        CheckpointError: missing, truncated, altered or foreign.
    """
    path = folder / "policy.json"
    try:
        body = json.loads(path.read_bytes())
        if body["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {body['format']}, this qfleet {__version__} reads format {FORMAT}")
        spec_values = dict(body["spec"])
        spec_values["obs_shape"] = tuple(spec_values["obs_shape"])
        spec = EnvSpec(**spec_values)
        weights = SavedFile(**body["weights"])
        version, layout_hash, facts = int(body["version"]), str(body["layout_hash"]), dict(body["facts"])
        raw_config = dict(body["config"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no policy here; is this a run directory that has been evaluated once?"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a policy file ({type(error).__name__}: {error})") from error
    tensors = load_tensors(read_verified(folder, weights))
    snapshot = ParamSnapshot(version, tensors["vector"], tensors["buffers"], layout_hash)
    return build_config(raw_config, [], is_read_back=True), spec, snapshot, facts


def load_policy(path: str | Path) -> Policy | OnnxPolicy:
    """The best policy of a run directory, or the one in an exported .onnx file, ready to act.

    Raises:
        CheckpointError: the run directory holds no whole policy, or the file is no exported policy.
        MissingExtraError: an .onnx file, and onnxruntime is not installed.
    """
    if Path(path).suffix == ".onnx":
        return OnnxPolicy.read(path)
    config, spec, snapshot, _ = read_policy(Path(path) / "best")
    return Policy(make_blueprint(config, spec), snapshot)


def make_blueprint(config: RunConfig, spec: EnvSpec, device: str = "cpu") -> Blueprint:
    """A blueprint from a complete configuration."""
    return Blueprint(
        env=config.env,
        env_factory=None,
        spec=spec,
        algo_name=config.algo.name,
        algo=config.algo,
        network=config.network,
        replay=config.pace,
        seed=config.seed,
        device=device,
    )
