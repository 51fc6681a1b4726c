"""Learning curves: drawn from what a run wrote down, also when that is little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from qfleet.curve import draw_learning_curve, draw_seeds_curve
from qfleet.errors import QfleetError


def write_run(folder: Path, records: list[dict[str, Any]], summary: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.toml").write_text(
        '[env]\nid = "Some-v0"\n[algo]\nname = "dqn"\n[strategy]\nname = "serial"\n[engine]\nname = "inline"\n'
    )
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def validation(num_env_steps: int, mean: float) -> dict[str, Any]:
    values = {"mean_return": mean, "std_return": 1.0, "min_return": mean - 2, "max_return": mean + 2}
    return {"kind": "evaluation", "num_env_steps": num_env_steps, "train_seconds": num_env_steps / 100, **values}


def training(num_env_steps: int, mean: float | None) -> dict[str, Any]:
    return {
        "kind": "train", "num_env_steps": num_env_steps, "train_seconds": num_env_steps / 100, "mean_return": mean
    }  # fmt: skip


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def record(figure: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_curve_shows_training_validation_target_and_held_out_score(tmp_path: Path, figures: list[Figure]) -> None:
    score = {"mean_return": 9.0, "std_return": 0.5, "episodes": 10}
    summary = {"seed": 4, "target_return": 8.0, "eval": score, "num_env_steps": 300}
    records = [training(100, None), training(200, 3.0), validation(200, 5.0), training(300, 4.0), validation(300, 9.5)]
    path = draw_learning_curve(write_run(tmp_path / "a", records, summary))
    assert path.read_bytes().startswith(b"\x89PNG")
    axes, seconds = figures[0].axes
    assert axes.get_title(loc="left") == "Some-v0 · dqn x serial x inline · seed 4"
    assert legend(figures[0]) == [
        "training, exploring (mean of the last 100 episodes)",
        "validation, worst to best",
        "validation, greedy: mean",
        "target 8",
        "held-out: 9.0 ± 0.5 over 10 episodes",
    ]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["training, exploring (mean of the last 100 episodes)"] == [[200, 3], [300, 4]]
    assert lines["validation, greedy: mean"] == [[200, 5], [300, 9.5]]
    # 100 env steps took a second: the upper axis says 1 s where the lower one says 100.
    ticks = dict(zip([text.get_text() for text in seconds.get_xticklabels()], seconds.get_xticks(), strict=True))
    assert ticks["1 s"] == pytest.approx(100)
    assert seconds.get_xlim() == axes.get_xlim()


def test_run_without_validation_or_score_still_has_a_curve(tmp_path: Path, figures: list[Figure]) -> None:
    draw_learning_curve(write_run(tmp_path / "a", [training(100, 1.0)]))
    assert legend(figures[0]) == ["training, exploring (mean of the last 100 episodes)"]


def test_run_without_metrics_has_none(tmp_path: Path) -> None:
    with pytest.raises(QfleetError, match="nothing to draw yet"):
        draw_learning_curve(write_run(tmp_path / "a", []))
    with pytest.raises(QfleetError, match="no run has been validated"):
        draw_seeds_curve([tmp_path / "a"], tmp_path / "b.png")


def test_seeds_curve_is_the_mean_and_a_finished_run_keeps_its_last_value(tmp_path: Path, figures: list[Figure]) -> None:
    short = write_run(tmp_path / "short", [validation(0, 0.0), validation(100, 10.0)])
    long = write_run(tmp_path / "long", [validation(0, 2.0), validation(100, 2.0), validation(200, 6.0)])
    path = draw_seeds_curve([short, long], tmp_path / "seeds.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    lines = {line.get_label(): line.get_xydata() for line in figures[0].axes[0].get_lines()}
    mean = lines["validation, greedy: mean over seeds"]
    assert mean[0].tolist() == [0, 1]  # (0 + 2) / 2
    assert mean[-1].tolist() == [200, 8]  # (10, kept, + 6) / 2
    assert "2 seeds" in figures[0].axes[0].get_title(loc="left")
