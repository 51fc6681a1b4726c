"""Series: one configuration run with several seeds, one after the other, each in run_dir/seed-<k>/; and the spread.

    series.json      the seeds and the configuration, written first, so that a stopped series can go on
    summary.json     the members' summaries and the spread, written last

Floor 6.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qfleet.curve import CURVE_NAME, draw_seeds_curve
from qfleet.errors import CheckpointError, UsageError
from qfleet.experiment import Experiment
from qfleet.run_config import RunConfig, build_config, change_config
from qfleet.run_dir import default_run_dir
from qfleet.storage import write_file

FORMAT = 1
SERIES_NAME = "series.json"


class Series:
    """Several seeds of one configuration.

    Args:
        config: the complete configuration; its seed is the first one.
        num_seeds: how many, counted on from there.
        run_dir: a new directory, or None for one beside where single runs go.

    Raises:
        UsageError: `run_dir` is not empty.
    """

    def __init__(self, config: RunConfig, num_seeds: int, run_dir: str | Path | None = None) -> None:
        self.config = config
        self.seeds = list(range(config.seed, config.seed + num_seeds))
        if run_dir is None:
            single = default_run_dir(config)
            run_dir = single.with_name(f"{single.name}-to-{self.seeds[-1]}")
        self.run_dir = Path(run_dir)
        self.recipe: str | None = None
        self._changes: list[tuple[str, object]] = []
        if self.run_dir.exists() and any(self.run_dir.iterdir()):
            raise UsageError(
                f"{self.run_dir}: this directory is not empty; continue it with --resume {self.run_dir}, "
                "or choose another --run-dir"
            )

    @classmethod
    def resume(cls, run_dir: str | Path, overrides: dict[str, object] | None = None) -> Series:
        """Go on with a series that was stopped: finished members keep their results, the others run on or start.

        Args:
            run_dir: the series' directory.
            overrides: changes to stop.*, checkpoint.* and logging.* only, for every member.

        Raises:
            CheckpointError: series.json cannot be read.
        """
        path = Path(run_dir) / SERIES_NAME
        try:
            body = json.loads(path.read_bytes())
            if body["format"] != FORMAT:
                raise ValueError(f"format {body['format']}")
            seeds, raw = [int(seed) for seed in body["seeds"]], dict(body["config"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a series ({type(error).__name__}: {error})") from error
        series = cls.__new__(cls)
        series.config = build_config(raw, [], is_read_back=True)
        series.seeds = seeds
        series.run_dir = Path(run_dir)
        series.recipe = None
        series._changes = list((overrides or {}).items())
        return series

    def members(self) -> Iterator[tuple[int, Experiment | dict[str, object]]]:
        """Each seed with its experiment, ready to run, or with its summary where it is complete already."""
        values = self.config.model_dump(mode="json", by_alias=True, exclude_none=True)
        body = {"format": FORMAT, "seeds": self.seeds, "config": values}
        write_file(self.run_dir, SERIES_NAME, json.dumps(body, indent=1).encode())
        for seed in self.seeds:
            folder = self.run_dir / f"seed-{seed}"
            if (folder / "config.toml").is_file():
                experiment = Experiment.resume(folder, dict(self._changes))
                if experiment.why_complete() is not None:
                    yield seed, json.loads((folder / "summary.json").read_bytes())
                    continue
            else:
                experiment = Experiment(change_config(self.config, [("seed", seed), *self._changes]), folder)
                experiment.recipe = self.recipe
            yield seed, experiment

    def finish(self, summaries: Sequence[dict[str, object]]) -> tuple[dict[str, object], list[str]]:
        """Write summary.json and draw the seeds' curve.

        Returns:
            the series' summary, and warnings, a line each.
        """
        warnings = []
        try:
            draw_seeds_curve([str(summary["run_dir"]) for summary in summaries], self.run_dir / CURVE_NAME)
        except Exception as error:  # as for one run: a plot is worth no failure
            warnings.append(f"{CURVE_NAME} was not drawn: {type(error).__name__}: {error}")
        summary: dict[str, object] = {
            "run_dir": str(self.run_dir),
            "env": self.config.env.id,
            "seeds": [run["seed"] for run in summaries],
            "num_seeds_asked": len(self.seeds),
            "reached": sum(bool(run["reached"]) for run in summaries),
            "spread": spread(summaries),
            "runs": list(summaries),
        }
        write_file(self.run_dir, "summary.json", json.dumps(summary, indent=1).encode())
        return summary, warnings


def spread(summaries: Sequence[dict[str, object]]) -> dict[str, dict[str, float]]:
    """Mean, std, min, median and max over runs of the held-out return, the training seconds and the env steps."""
    columns: dict[str, list[float]] = {"eval_mean_return": [], "train_seconds": [], "num_env_steps": []}
    for summary in summaries:
        score = summary.get("eval")
        if isinstance(score, dict):
            columns["eval_mean_return"].append(float(score["mean_return"]))
        for name in ("train_seconds", "num_env_steps"):
            columns[name].append(float(str(summary[name])))
    return {name: _statistics(values) for name, values in columns.items() if values}


def _statistics(values: list[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "median": float(np.median(values)),
        "max": float(np.max(values)),
    }
