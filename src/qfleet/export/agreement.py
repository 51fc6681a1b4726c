"""Whether an export agrees with the policy that it was made of: values, greedy actions, and for int8 the return."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from qfleet.errors import ExportError
from qfleet.onnx_policy import relative_errors
from qfleet.types import FloatArray, IntArray

TOLERANCE = 1e-4
MIN_EQUAL_INT8 = 0.99


@dataclass(frozen=True, slots=True)
class Returns:
    """Mean undiscounted returns over the same episodes, and the standard error of their difference."""

    original: float
    exported: float
    stderr: float
    num_episodes: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was compared, and what came out.

    Attributes:
        num_observations: from the environment, greedy with some random actions.
        max_relative_error: of the values, relative to the largest of their row.
        num_clear: observations whose best two values differ by more than `tolerance` of the row's largest.
        num_different: of those, the greedy actions that differ.
        equal_actions: share of all observations with the same greedy action.
        tolerance: the relative error that is allowed; None for int8, whose actions count instead.
        returns: for int8.
    """

    num_observations: int
    max_relative_error: float
    num_clear: int
    num_different: int
    equal_actions: float
    tolerance: float | None
    returns: Returns | None = None

    def to_json(self) -> dict[str, object]:
        """For the exported file and the command line."""
        return asdict(self)

    def line(self) -> str:
        """The same for people."""
        text = (
            f"agreement on {self.num_observations:,} observations: q_values within {self.max_relative_error:.1e} "
            f"relative, {self.equal_actions:.1%} of the greedy actions equal"
        )
        if self.tolerance is not None:
            text += f" (all {self.num_clear:,} where the best two differ by more than {self.tolerance:g})"
        if self.returns is not None:
            text += (
                f"; return {self.returns.exported:.1f} against {self.returns.original:.1f} "
                f"(+/- {self.returns.stderr:.1f}) over {self.returns.num_episodes} episodes"
            )
        return text

    def require(self) -> None:
        """Refuse an export that does not agree.

        Raises:
            ExportError: naming by how much.
        """
        if self.tolerance is None:
            self._require_int8()
        elif not self.max_relative_error <= self.tolerance:
            raise ExportError(
                f"the export disagrees with the policy: q_values differ by {self.max_relative_error:.2g} relative, "
                f"more than {self.tolerance:g}; no file was written"
            )
        elif self.num_different:
            raise ExportError(
                f"the export disagrees with the policy: {self.num_different} of {self.num_clear} clear greedy actions "
                "differ; no file was written"
            )

    def _require_int8(self) -> None:
        if not self.equal_actions >= MIN_EQUAL_INT8:
            raise ExportError(
                f"--int8: {self.equal_actions:.1%} of the greedy actions are those of the policy, fewer than "
                f"{MIN_EQUAL_INT8:.0%}; no file was written; export without --int8"
            )
        returns = self.returns
        if returns is not None and not returns.exported >= returns.original - 2.0 * returns.stderr:
            raise ExportError(
                f"--int8: return {returns.exported:.2f} over {returns.num_episodes} episodes, the policy's is "
                f"{returns.original:.2f} +/- {returns.stderr:.2f}; no file was written; export without --int8"
            )


def compare(
    reference_BA: FloatArray,
    values_BA: FloatArray,
    actions_B: IntArray,
    tolerance: float | None = TOLERANCE,
    returns: Returns | None = None,
) -> Agreement:
    """Compare values and greedy actions.

    Args:
        reference_BA: float [B, A], the policy's values.
        values_BA, actions_B: the export's.
        tolerance: relative; None for int8, where it only says which actions are clear.
        returns: for int8.
    """
    errors_B = relative_errors(reference_BA, values_BA)
    scale_B = np.maximum(np.abs(reference_BA).max(axis=1), 1e-6)
    best_two = np.sort(reference_BA, axis=1)[:, -2:]
    is_clear = best_two[:, -1] - best_two[:, 0] > (tolerance or TOLERANCE) * scale_B
    is_equal = reference_BA.argmax(axis=1) == actions_B
    return Agreement(
        num_observations=len(reference_BA),
        max_relative_error=float(errors_B.max(initial=0.0)),
        num_clear=int(is_clear.sum()),
        num_different=int((is_clear & ~is_equal).sum()),
        equal_actions=float(is_equal.mean()),
        tolerance=tolerance,
        returns=returns,
    )


def compare_returns(original: list[float], exported: list[float]) -> Returns:
    """Mean returns of two lists of equally many episodes on the same seeds."""
    first, second = np.asarray(original, np.float64), np.asarray(exported, np.float64)
    variance = sum(values.var(ddof=1) / len(values) for values in (first, second)) if len(first) > 1 else 0.0
    return Returns(float(first.mean()), float(second.mean()), float(np.sqrt(variance)), len(first))
