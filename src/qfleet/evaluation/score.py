"""The numbers of a policy's episodes: where returns lie, how sure their mean is, and what was done. Floor 7."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qfleet.evaluation.episodes import Episodes
from qfleet.ops.bootstrap import bootstrap_interval
from qfleet.outcome import return_statistics


@dataclass(frozen=True, slots=True)
class Score:
    """Statistics of N complete episodes.

    Attributes:
        num_episodes: N.
        mean, median, std, min, max: of the returns; std as of a whole population.
        iqm: interquartile mean, the mean of the middle half.
        low, high: 95% bootstrap interval of the mean.
        mean_length, min_length, max_length: env steps.
        actions: share of the env steps in which each action was taken.
    """

    num_episodes: int
    mean: float
    median: float
    iqm: float
    std: float
    min: float
    max: float
    low: float
    high: float
    mean_length: float
    min_length: int
    max_length: int
    actions: list[float]

    def to_json(self) -> dict[str, object]:
        """By the names of the command's JSON."""
        return {
            "mean_return": self.mean,
            "median_return": self.median,
            "iqm_return": self.iqm,
            "max_return": self.max,
            "min_return": self.min,
            "std_return": self.std,
            "interval": [self.low, self.high],
            "episodes": self.num_episodes,
            "mean_length": self.mean_length,
            "min_length": self.min_length,
            "max_length": self.max_length,
            "actions": self.actions,
        }


def score(episodes: Episodes) -> Score:
    """Sum up episodes, of which there is at least one."""
    returns = np.array(episodes.returns)
    basic = return_statistics(episodes.returns)
    low, high = bootstrap_interval(returns)
    return Score(
        num_episodes=len(returns),
        mean=float(str(basic["mean_return"])),
        median=float(np.median(returns)),
        iqm=interquartile_mean(episodes.returns),
        std=float(str(basic["std_return"])),
        min=float(str(basic["min_return"])),
        max=float(str(basic["max_return"])),
        low=float(low),
        high=float(high),
        mean_length=float(np.mean(episodes.lengths)),
        min_length=min(episodes.lengths),
        max_length=max(episodes.lengths),
        actions=(episodes.actions / episodes.actions.sum()).tolist(),
    )


def interquartile_mean(values: list[float]) -> float:
    """Mean of what is left once a quarter of the values, rounded down, is cut off at either end.

    Agarwal et al. (2021), Deep Reinforcement Learning at the Edge of the Statistical Precipice.
    """
    num_cut = len(values) // 4
    return float(np.mean(sorted(values)[num_cut : len(values) - num_cut]))
