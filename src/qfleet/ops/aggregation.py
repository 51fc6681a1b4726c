"""From the updates of N workers or clients to one: means, robust means, the federated server's step.

A server calls these on whole vectors or on its slice; only Krum needs the whole one, and its squared distances add up
over slices. P parameters, N updates. McMahan et al. (2017, FedAvg), Yin et al. (2018, median and trimmed mean),
Blanchard et al. (2017, Krum), Reddi et al. (2021, FedAdam), Li et al. (2020, FedProx).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from qfleet.types import FloatArray, IntArray

Updates = Sequence[FloatArray] | FloatArray  # N vectors of one length, or an array [N, P]
FloatVector = npt.NDArray[np.float64]
VectorT = TypeVar("VectorT", FloatArray, Tensor)

_COLUMNS_AT_A_TIME = 16384  # so that 50 rows in float64 stay in the cache


def mean(updates: Updates, weights: FloatVector | None = None) -> FloatArray:
    """sum_i w_i u_i / sum_i w_i; with w_i the number of samples behind u_i this is FedAvg (McMahan et al. 2017).

    Accumulated in float64 in the order given and rounded once, so the mean of one update, or of one update and others
    of weight 0, is that update bit for bit.

    Args:
        updates: float [P] each, all of one dtype.
        weights: float64 [N], not negative; None weighs all alike. An update of weight 0 is not read.

    Returns:
        float [P] of the updates' dtype.

    Raises:
        ValueError: there is no update, or the weights are not N finite ones, none negative, some positive.
    """
    num_updates = _number_of(updates)
    weights_N = np.ones(num_updates) if weights is None else np.asarray(weights, np.float64)
    total_weight = weights_N.sum()
    if weights_N.shape != (num_updates,) or not np.all(weights_N >= 0.0) or not 0.0 < total_weight < np.inf:
        raise ValueError(
            f"weights must be {num_updates} finite numbers, none negative and some positive, got {weights}"
        )
    shares_N = weights_N / total_weight
    first, *others = np.flatnonzero(shares_N).tolist()
    # Begins with the first product, not with zeros: 0 + -0 would be 0.
    total_P: FloatVector = np.multiply(updates[first], shares_N[first], dtype=np.float64)
    product_P = np.empty_like(total_P)
    for index in others:
        np.multiply(updates[index], shares_N[index], out=product_P, dtype=np.float64)
        total_P += product_P
    result_P: FloatArray = total_P.astype(updates[0].dtype)
    return result_P


def trimmed_mean(updates: Updates, trim: int) -> FloatArray:
    """The mean of each coordinate without its `trim` smallest and its `trim` largest values (Yin et al. 2018).

    Bounded by the honest values while at most `trim` updates are arbitrary. NaN counts as the largest value.

    Args:
        updates: float [P] each, N of them.
        trim: how many values are dropped at each end.

    Returns:
        float [P] of the updates' dtype.

    Raises:
        ValueError: there is no update, trim is negative, or nothing is left: 2 * trim >= N.
    """
    num_updates = _number_of(updates)
    if trim < 0 or 2 * trim >= num_updates:
        raise ValueError(
            f"cannot drop {trim} of {num_updates} updates at each end: it takes 0 <= 2 * trim < {num_updates}"
        )
    if trim == 0:
        return mean(updates)  # in the order given, so that dropping nothing is the mean bit for bit
    return mean(np.sort(np.asarray(updates), axis=0)[trim : num_updates - trim])


def coordinate_median(updates: Updates) -> FloatArray:
    """The median of each coordinate, the mean of the middle two where N is even (Yin et al. 2018). -> float [P].

    NaN counts as the largest value, so it takes a majority of them to show.

    Raises:
        ValueError: there is no update.
    """
    return trimmed_mean(updates, (_number_of(updates) - 1) // 2)


def squared_distances(updates: Updates) -> FloatVector:
    """|u_i - u_j|^2 for each pair: float [P] each -> float64 [N, N], symmetric, 0 on the diagonal.

    Adds up over slices of the vector. By |a|^2 + |b|^2 - 2 ab in float64, whose rounding is below that of float32
    updates themselves; NaN or infinity in an update stays in its row and column.

    Raises:
        ValueError: there is no update.
    """
    num_updates = _number_of(updates)
    products_NN = np.zeros((num_updates, num_updates))
    with np.errstate(invalid="ignore", over="ignore"):  # of updates that are not finite
        for start in range(0, len(updates[0]), _COLUMNS_AT_A_TIME):
            columns = slice(start, start + _COLUMNS_AT_A_TIME)
            block_NC = np.array([update[columns] for update in updates], np.float64)
            products_NN += block_NC @ block_NC.T
        norms_N = products_NN.diagonal()
        distances_NN: FloatVector = norms_N[:, None] + norms_N[None, :] - 2.0 * products_NN
    np.maximum(distances_NN, 0.0, out=distances_NN)
    np.fill_diagonal(distances_NN, 0.0)
    return distances_NN


def krum_scores(squared_distances_NN: FloatVector, num_byzantine: int) -> FloatVector:
    """The sum of each update's squared distances to its N - f - 2 nearest others (Blanchard et al. 2017, section 4).

    Args:
        squared_distances_NN: float64 [N, N]; the diagonal is not read. NaN counts as the largest distance.
        num_byzantine: f, how many of the N may be arbitrary.

    Returns:
        float64 [N]; the smaller, the more trusted.

    Raises:
        ValueError: f is negative, or N < 2f + 3, below which the paper promises nothing.
    """
    num_updates = len(squared_distances_NN)
    if num_byzantine < 0 or num_updates < 2 * num_byzantine + 3:
        raise ValueError(
            f"Krum against {num_byzantine} of {num_updates} updates: num_byzantine must be 0 or more, and it takes at "
            f"least 2 * {num_byzantine} + 3 updates"
        )
    others_NN = np.array(squared_distances_NN, np.float64)
    np.fill_diagonal(others_NN, -np.inf)  # sorts first, whatever the rest, so that column 0 is the update itself
    others_NN.sort(axis=1)
    scores_N: FloatVector = others_NN[:, 1 : num_updates - num_byzantine - 1].sum(axis=1)
    return scores_N


def krum_selection(squared_distances_NN: FloatVector, num_byzantine: int, num_selected: int = 1) -> IntArray:
    """Which updates Krum keeps: the `num_selected` of least score, the first where several are equal.

    For servers that each hold a slice: sum their `squared_distances`, select once, then each takes the mean.

    Args:
        squared_distances_NN: float64 [N, N].
        num_byzantine: f, how many of the N may be arbitrary.
        num_selected: m, from 1 (Krum) to N - f (more would surely include a Byzantine one).

    Returns:
        int64 [m], ascending.

    Raises:
        ValueError: N < 2f + 3, m is out of range, or fewer than m updates have a finite score, which means that more
            than f of them are not finite.
    """
    scores_N = krum_scores(squared_distances_NN, num_byzantine)
    if not 1 <= num_selected <= len(scores_N) - num_byzantine:
        raise ValueError(
            f"num_selected is {num_selected}; of {len(scores_N)} updates with {num_byzantine} Byzantine it must be "
            f"from 1 to {len(scores_N) - num_byzantine}"
        )
    selected: IntArray = np.sort(np.argsort(scores_N, kind="stable")[:num_selected])
    if not np.isfinite(scores_N[selected]).all():
        raise ValueError(f"more than {num_byzantine} of {len(scores_N)} updates hold NaN or infinity")
    return selected


def krum(updates: Updates, num_byzantine: int, num_selected: int = 1) -> FloatArray:
    """The mean of the updates that `krum_selection` keeps: Krum for one, multi-Krum for more. -> float [P].

    Raises:
        ValueError: as `krum_selection`.
    """
    selected = krum_selection(squared_distances(updates), num_byzantine, num_selected)
    return mean([updates[index] for index in selected])


def fed_adam(
    vector: FloatArray,
    pseudo_gradient: FloatArray,
    first_moment: FloatArray,
    second_moment: FloatArray,
    learning_rate: float,
    beta1: float,
    beta2: float,
    tau: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The server's step of FedAdam (Reddi et al. 2021, algorithm 2): m / (sqrt(v) + tau), without bias correction.

    Args:
        vector: float [P], the global parameters.
        pseudo_gradient: float [P], global parameters minus the clients' mean, the paper's -Delta; descended like a
            gradient, so that plain SGD on it with learning rate 1 is FedAvg.
        first_moment, second_moment: float [P], m and v; at first 0 and tau^2 (the paper asks for at least tau^2).
        learning_rate, beta1, beta2, tau: as in the paper; tau is the degree of adaptivity.

    Returns:
        vector, first_moment, second_moment after the step, new arrays.
    """
    first_moment = beta1 * first_moment + (1.0 - beta1) * pseudo_gradient
    second_moment = beta2 * second_moment + (1.0 - beta2) * np.square(pseudo_gradient)
    return vector - learning_rate * first_moment / (np.sqrt(second_moment) + tau), first_moment, second_moment


def proximal_gradient(gradient: VectorT, vector: VectorT, anchor: VectorT, mu: float) -> VectorT:
    """gradient + mu (w - w_global): the gradient of the loss plus mu/2 |w - w_global|^2 (FedProx, Li et al. 2020).

    float [P] each, arrays or tensors; `anchor` is w_global, the parameters that the round began with.
    """
    return gradient + mu * (vector - anchor)


def _number_of(updates: Updates) -> int:
    if len(updates) == 0:
        raise ValueError("there is no update to aggregate")
    return len(updates)
