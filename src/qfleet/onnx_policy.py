"""An exported policy in use: an ONNX file with its description inside, run by onnxruntime. Floor 6.

Nothing here imports torch: what serves a policy needs numpy, onnxruntime and this file. `qfleet export` writes the
files (export/); the description is JSON under the metadata key "qfleet".
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from qfleet.errors import CheckpointError, MissingExtraError, UsageError, first_line
from qfleet.ops.declared import as_declared
from qfleet.ops.exploration import greedy
from qfleet.types import Array, BoolArray, EnvSpec, FloatArray, IntArray

if TYPE_CHECKING:
    from qfleet.envs.spaces import SingleEnv

KEY = "qfleet"
FORMAT = 1
MAX_GOLDEN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Golden:
    """A few observations [G, *O] with the values [G, A] that the policy gave them, and how far they may be off."""

    obs: Array
    q_values: FloatArray
    tolerance: float

    def to_json(self) -> dict[str, object]:
        """As `of_json` reads it: the observations compressed, the values as numbers."""
        content = zlib.compress(np.ascontiguousarray(self.obs).tobytes(), 9)
        return {
            "shape": list(self.obs.shape),
            "zlib_base64": base64.b64encode(content).decode(),
            "q_values": [[float(value) for value in row] for row in self.q_values],
            "tolerance": self.tolerance,
        }

    @classmethod
    def of_json(cls, body: Mapping[str, Any], spec: EnvSpec) -> Golden:
        """What `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError, zlib.error: it is something else.
        """
        shape = tuple(int(size) for size in body["shape"])
        if shape[1:] != spec.obs_shape:
            raise ValueError(f"golden observations of shape {shape}")
        content = zlib.decompressobj().decompress(base64.b64decode(body["zlib_base64"]), MAX_GOLDEN_BYTES)
        obs = np.frombuffer(content, spec.obs_dtype).reshape(shape)
        return cls(obs, np.asarray(body["q_values"], np.float32), float(body["tolerance"]))


@dataclass(frozen=True, slots=True)
class Description:
    """What an exported policy says of itself.

    Attributes:
        spec: the environment's facts.
        golden: observations and values by which a loaded file is checked.
        body: everything, as JSON: env_id, env, spec, algo, facts, agreement, observation, action, outputs, golden...
    """

    spec: EnvSpec
    golden: Golden
    body: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str, where: str) -> Description:
        """The description of a file.

        Raises:
            CheckpointError: it is not one, or of another format.
        """
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise CheckpointError(f"{where}: format {body['format']}, this qfleet reads format {FORMAT}")
            spec_values = dict(body["spec"])
            spec_values["obs_shape"] = tuple(int(size) for size in spec_values["obs_shape"])
            spec = EnvSpec(**spec_values)
            return cls(spec, Golden.of_json(body["golden"], spec), body)
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise CheckpointError(f"{where}: its description is damaged ({type(error).__name__}: {error})") from error

    @property
    def facts(self) -> dict[str, object]:
        """What is known of the policy: version, num_env_steps, mean_return..."""
        return dict(self.body["facts"])


class OnnxPolicy:
    """The greedy policy in an exported file; acts as `qfleet.policy.Policy` does.

    Args:
        content: the file's bytes.
        where: its name, for messages.
        num_threads: of one inference; small networks are fastest with one.

    Raises:
        CheckpointError: no ONNX file, or none that `qfleet export` wrote.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, content: bytes, where: str = "policy", num_threads: int = 1) -> None:
        self.where = where
        self.digest = hashlib.sha256(content).hexdigest()
        self._session = _open_session(content, where, num_threads)
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        inputs = [value.name for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        if text is None or inputs != ["obs"] or outputs != ["q_values", "action"]:
            raise CheckpointError(f"{where}: an ONNX file, but no exported policy; make one with qfleet export")
        self.description = Description.parse(text, where)
        self.spec = self.description.spec
        self._shape, self._dtype = self.spec.obs_shape, np.dtype(self.spec.obs_dtype)
        self._run = self._session.run

    @classmethod
    def read(cls, path: str | Path, num_threads: int = 1) -> OnnxPolicy:
        """The policy in a file.

        Raises:
            CheckpointError: it cannot be read, or is no exported policy.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: {(error.strerror or type(error).__name__).lower()}") from error
        return cls(content, str(path), num_threads)

    @property
    def version(self) -> str:
        """Which policy this is: the version of its parameters, and the first digits of the file's SHA-256."""
        return f"{self.description.facts.get('version', 0)}-{self.digest[:8]}"

    def infer(self, obs_BO: Array) -> tuple[FloatArray, IntArray]:
        """A batch that has been checked: [B, *O] of the declared dtype -> float32 [B, A] and int64 [B]."""
        q_values, action = self._run(None, {"obs": obs_BO})
        return cast(FloatArray, q_values), cast(IntArray, action)

    def q_values(self, obs: Array) -> FloatArray:
        """Action values of one observation [*O] -> [A], or of a batch [B, *O] -> [B, A].

        Raises:
            UsageError: the shape fits neither, or the numbers are not of the declared dtype.
        """
        obs = as_declared(obs, self._dtype)
        if obs.shape == self._shape:
            return cast(FloatArray, self.infer(obs[None])[0][0])
        return self.infer(self._require_batch(obs))[0]

    def act(self, obs: Array, action_mask: BoolArray | None = None) -> int | IntArray:
        """The greedy action of one observation (an int) or of a batch (int64 [B]); illegal actions are left out.

        Raises:
            UsageError: the shape fits neither, or the numbers are not of the declared dtype.
        """
        obs = as_declared(obs, self._dtype)
        is_single = obs.shape == self._shape
        if is_single and action_mask is None:
            return int(self._run(_ACTION, {"obs": obs[None]})[0][0])
        batch = obs[None] if is_single else self._require_batch(obs)
        if action_mask is None:
            return cast(IntArray, self._run(_ACTION, {"obs": batch})[0])
        mask = np.asarray(action_mask, bool)
        actions = greedy(self.infer(batch)[0], mask[None] if is_single else mask)
        return int(actions[0]) if is_single else actions

    def make_env(self) -> SingleEnv:
        """One environment that takes this policy's actions and gives its observations.

        Raises:
            UsageError: it cannot be made from its name.
        """
        from qfleet.envs.config import EnvConfig
        from qfleet.envs.source import find_source

        return find_source(EnvConfig.model_validate(self.description.body["env"])).build()

    def check_golden(self) -> None:
        """Compare the values of the golden observations with those that the policy gave at export.

        Raises:
            CheckpointError: they differ by more than the export allowed.
        """
        golden = self.description.golden
        values, _ = self.infer(golden.obs)
        if values.shape != golden.q_values.shape:
            raise CheckpointError(f"{self.where}: values of shape {values.shape}, not {golden.q_values.shape}")
        error = float(relative_errors(golden.q_values, values).max(initial=0.0))
        if not error <= golden.tolerance:
            raise CheckpointError(
                f"{self.where}: q_values of the golden observations are off by {error:.2g}, more than "
                f"{golden.tolerance:g}: the file was altered, or this onnxruntime computes something else"
            )

    def _require_batch(self, obs: Array) -> Array:
        if obs.shape[1:] != self._shape or not obs.ndim:
            raise UsageError(f"observation of shape {obs.shape}; this policy takes {self._shape} or a batch of it")
        return np.ascontiguousarray(obs)


_ACTION = ["action"]


def relative_errors(reference_BA: FloatArray, values_BA: FloatArray) -> FloatArray:
    """How far two sets of values are apart, relative to the largest of each row: float [B]; infinite where not finite.

    A single value near zero has no meaningful relative error of its own, so each row is measured by its largest.
    """
    scale_B = np.maximum(np.abs(reference_BA).max(axis=1), 1e-6)
    errors_B = np.abs(values_BA.astype(np.float64) - reference_BA).max(axis=1) / scale_B
    return cast(FloatArray, np.where(np.isfinite(errors_B), errors_B, np.inf))


def _open_session(content: bytes, where: str, num_threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(f"{where}: reading it needs onnxruntime: pip install 'qfleet[onnx]'") from error
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin while they wait would take the cores from whoever asks.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # An arena keeps the largest batch ever seen; without it memory follows what is in use.
    options.enable_cpu_mem_arena = False
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common base
        raise CheckpointError(f"{where}: not an ONNX file ({first_line(error)[:200]})") from error
