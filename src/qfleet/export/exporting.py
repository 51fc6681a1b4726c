"""From a run's best policy to a file that agrees with it: build, compare, describe, write; nothing is written before.

read_policy -> GreedyNetwork -> onnx | torch | safetensors -> 1,000 observations -> Agreement -> file
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from qfleet.algos.base import Algorithm
from qfleet.envs.source import find_source
from qfleet.envs.spaces import TableAction, one_line
from qfleet.errors import UsageError
from qfleet.export.agreement import TOLERANCE, Agreement, Returns, compare, compare_returns
from qfleet.export.network import build_greedy_network, meaning_of_values
from qfleet.export.observations import collect_observations
from qfleet.export.onnx_file import OPSET, build_onnx, quantize, with_metadata
from qfleet.networks.flat import FlatNetwork
from qfleet.onnx_policy import FORMAT, KEY, Golden, OnnxPolicy
from qfleet.policy import Policy, make_blueprint, read_policy
from qfleet.roles.evaluator import Evaluator
from qfleet.run_config import RunConfig
from qfleet.seeding import derive_seed
from qfleet.storage import write_file
from qfleet.types import Array, EnvSpec, FloatArray, IntArray, ParamSnapshot
from qfleet.version import __version__

Format = Literal["onnx", "torch", "safetensors"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
Infer = Callable[[Array], tuple[FloatArray, IntArray]]
CHUNK = 64  # observations in one call of a comparison
MAX_GOLDEN, GOLDEN_BYTES = 8, 256 << 10
# Another processor adds in another order; int8 kernels also saturate differently.
GOLDEN_TOLERANCE, GOLDEN_TOLERANCE_INT8 = 1e-3, 0.1


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written: where, what was compared, and its description."""

    path: Path
    num_bytes: int
    agreement: Agreement
    description: dict[str, object]


class Export:
    """The best policy of a run on its way into a file.

    Args:
        run_dir: the run.

    Raises:
        CheckpointError: it holds no whole policy.
    """

    def __init__(self, run_dir: Path) -> None:
        self.config, self.spec, self.snapshot, self.facts = read_policy(run_dir / "best")
        self.blueprint = make_blueprint(self.config, self.spec)
        self.policy = Policy(self.blueprint, self.snapshot)
        self.algorithm = self.blueprint.build_algorithm()
        self.network = build_greedy_network(self.blueprint, self.snapshot)
        self.obs = collect_observations(self.blueprint, self.policy)
        self.reference = np.concatenate([self.policy.q_values(chunk) for chunk in _chunks(self.obs)])

    def to_onnx(self, *, int8: bool) -> tuple[bytes, Agreement, dict[str, object]]:
        """The file's content.

        Raises:
            ExportError: it cannot be translated, or does not agree.
        """
        model = build_onnx(self.network, self.obs[:2])
        tolerance: float | None = TOLERANCE
        if int8:
            # Every fourth observation: the comparison is on all, most of which calibration has not seen.
            model, tolerance = quantize(model, self.obs[::4]), None
        # A first description, for the policy that is compared reads one; the real one says what came out.
        draft = OnnxPolicy(with_metadata(model, KEY, json.dumps(self.describe("onnx", None, None, int8=int8))))
        returns = self.play(draft) if int8 else None
        agreement = self.agree(draft.infer, tolerance, returns)
        description = self.describe("onnx", agreement, draft.infer if int8 else None, int8=int8)
        content = with_metadata(model, KEY, json.dumps(description))
        OnnxPolicy(content).check_golden()
        return content, agreement, description

    def to_torch(self) -> tuple[bytes, Agreement, dict[str, object]]:
        """An exported program as torch.export.save writes it; the description is its extra file qfleet.json.

        Raises:
            ExportError: it does not agree.
        """
        shapes = {"obs": {0: torch.export.Dim("batch")}}
        program = torch.export.export(self.network, (torch.from_numpy(self.obs[:2]),), dynamic_shapes=shapes)
        agreement = self.agree(_infer_with(cast("Callable[[Tensor], tuple[Tensor, Tensor]]", program.module())))
        description = self.describe("torch", agreement, None)
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={f"{KEY}.json": json.dumps(description)})
        return content.getvalue(), agreement, description

    def to_safetensors(self) -> tuple[bytes, Agreement, dict[str, object]]:
        """The network's tensors by name; the description is the metadata "qfleet" in the header.

        Raises:
            ExportError: what was written does not give the policy's values when it is loaded.
        """
        tensors = {name: value.contiguous() for name, value in self.network.network.state_dict().items()}
        loaded = load_tensors(save_tensors(tensors))
        fresh = build_greedy_network(self.blueprint, _zeroed(self.snapshot))
        fresh.network.load_state_dict(loaded)
        agreement = self.agree(_infer_with(fresh))
        description = self.describe("safetensors", agreement, None)
        return save_tensors(tensors, {KEY: json.dumps(description)}), agreement, description

    def agree(self, infer: Infer, tolerance: float | None = TOLERANCE, returns: Returns | None = None) -> Agreement:
        """Compare an export with the policy on the collected observations.

        Raises:
            ExportError: they disagree.
        """
        values, actions = zip(*(infer(chunk) for chunk in _chunks(self.obs)), strict=True)
        agreement = compare(self.reference, np.concatenate(values), np.concatenate(actions), tolerance, returns)
        agreement.require()
        return agreement

    def play(self, exported: OnnxPolicy) -> Returns:
        """Episodes of both policies on the same seeds."""
        seed = derive_seed(self.config.seed, "export", "evaluate")
        returns = []
        for algorithm in (self.algorithm, cast(Algorithm, _OnnxAlgorithm(exported))):
            evaluator = Evaluator(self.blueprint, self.config.evaluation)
            evaluator.algorithm = algorithm
            try:
                receipt = evaluator.evaluate(self.snapshot, self.config.evaluation.final_episodes, seed)
            finally:
                evaluator.close()
            returns.append(list(receipt.episode_returns))
        return compare_returns(*returns)

    def describe(
        self, format_name: Format, agreement: Agreement | None, golden_by: Infer | None, *, int8: bool = False
    ) -> dict[str, object]:
        """What the file says of itself.

        Args:
            format_name: "onnx", "torch" or "safetensors".
            agreement: of the comparison; None in a draft.
            golden_by: what gives the golden observations' values; None for the policy itself.
            int8: whether the weights are quantised.
        """
        spec = self.spec
        size = self.obs[0].nbytes
        golden_obs = self.obs[:: max(1, len(self.obs) // max(1, min(MAX_GOLDEN, GOLDEN_BYTES // size)))][:MAX_GOLDEN]
        golden_values = self.policy.q_values(golden_obs) if golden_by is None else golden_by(golden_obs)[0]
        tolerance = GOLDEN_TOLERANCE_INT8 if int8 else GOLDEN_TOLERANCE
        return {
            "format": FORMAT,
            "file_format": format_name,
            "opset": OPSET if format_name == "onnx" else None,
            "int8": int8,
            "qfleet_version": __version__,
            "env_id": spec.env_id,
            "env": self.config.env.model_dump(mode="json"),
            "spec": {name: getattr(spec, name) for name in type(spec).__slots__},
            "algo": self.config.algo.name,
            "facts": {"version": self.snapshot.version, **self.facts},
            "agreement": None if agreement is None else agreement.to_json(),
            **_describe_spaces(self.config, spec),
            "outputs": {
                "q_values": f"float32 [batch, {spec.num_actions}]: {meaning_of_values(self.algorithm)}",
                "action": "int64 [batch]: the first of the best; action masks are not applied inside",
            },
            "golden": Golden(golden_obs, golden_values, tolerance).to_json(),
        }


def export_run(run_dir: Path, file_format: Format = "onnx", out: Path | None = None, *, int8: bool = False) -> Exported:
    """Export the best policy of a run; a file that was there before is replaced in one step, or kept.

    Args:
        run_dir: the run.
        file_format: "onnx", "torch" or "safetensors".
        out: the file; by default policy.onnx, policy-int8.onnx, policy.pt2 or policy.safetensors in the run directory.
        int8: quantise (onnx only).

    Raises:
        UsageError: --int8 with another format, or a file name with another suffix.
        ExportError: the export does not agree with the policy.
        CheckpointError: the run holds no whole policy.
    """
    if file_format not in SUFFIXES:
        raise UsageError(f"--format {file_format}: one of {', '.join(SUFFIXES)}")
    if int8 and file_format != "onnx":
        raise UsageError(f"--int8 is for --format onnx, not {file_format}")
    out = out or run_dir / f"policy{'-int8' if int8 else ''}{SUFFIXES[file_format]}"
    if out.suffix != SUFFIXES[file_format]:
        raise UsageError(f"--out {out}: a file of --format {file_format} ends in {SUFFIXES[file_format]}")
    export = Export(run_dir)
    if file_format == "onnx":
        content, agreement, description = export.to_onnx(int8=int8)
    elif file_format == "torch":
        content, agreement, description = export.to_torch()
    else:
        content, agreement, description = export.to_safetensors()
    write_file(out.parent, out.name, content, chosen_by="--out")
    return Exported(out, len(content), agreement, description)


class _OnnxAlgorithm:
    """What an Evaluator asks for values; its own network is not used."""

    def __init__(self, policy: OnnxPolicy) -> None:
        self._policy = policy

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """The exported policy's values: [B, *O] -> float [B, A]."""
        return torch.from_numpy(self._policy.infer(obs.numpy())[0])


def _describe_spaces(config: RunConfig, spec: EnvSpec) -> dict[str, object]:
    env = find_source(config.env).build()
    try:
        action: dict[str, object] = {"num_actions": spec.num_actions, "space": one_line(env.action_space)}
        if isinstance(env, TableAction):
            action["table"] = np.asarray(env.table).tolist()
            action["table_meaning"] = "action i stands for row i, an action of the environment itself"
        observation = {
            "dtype": spec.obs_dtype,
            "shape": list(spec.obs_shape),
            "space": one_line(env.observation_space)[:1000],
            "preprocessing": "inside: bytes are scaled to [0, 1], normalisation is applied, where there is any",
        }
    finally:
        env.close()
    return {"observation": observation, "action": action}


def _infer_with(network: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Infer:
    def infer(obs: Array) -> tuple[FloatArray, IntArray]:
        with torch.no_grad():
            values, actions = network(torch.from_numpy(obs))
        return values.numpy(), actions.numpy()

    return infer


def _chunks(obs: Array) -> list[Array]:
    return [obs[start : start + CHUNK] for start in range(0, len(obs), CHUNK)]


def _zeroed(snapshot: ParamSnapshot) -> ParamSnapshot:
    """The same layout without the values, so that only what was loaded can give them."""
    vector, buffers = np.zeros_like(snapshot.vector), np.zeros_like(snapshot.buffers)
    return ParamSnapshot(snapshot.version, vector, buffers, snapshot.layout_hash)
