"""What a comparison leaves behind: a picture, and a page that stands alone, parsed strictly."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from qfleet.comparison.page import page
from qfleet.comparison.picture import draw_picture
from qfleet.comparison.report import write_report
from qfleet.comparison.results import CellResult, Comparison, Curve, Estimate, VariantResult
from qfleet.comparison.wording import interval, middle, notes, written
from qfleet.errors import QfleetError
from qfleet.report.palette import style_of

XHTML = "{http://www.w3.org/1999/xhtml}"
EMPTY = Curve([], [], [], [])


def variant(label: str, mean: list[float], never: bool = False) -> VariantResult:
    x = [100.0 * number for number in range(1, len(mean) + 1)]
    curve = Curve(x, mean, [value - 1 for value in mean], [value + 1 for value in mean]) if mean else EMPTY
    end = float("inf") if never else 300.0
    measures = {
        "held_out_return": Estimate(7.0, 6.0, 8.0, [6.0, 8.0]),
        "env_steps_to_threshold": Estimate(end, 200.0, end, [200.0, end]),
        "bytes_pushed": Estimate(4e6, 4e6, 4e6, [4e6, 4e6]),
    }
    return VariantResult(
        label, "dqn", "serial", "inline", ["2 workers"], 2 if mean else 0, 2, measures if mean else {},
        Estimate(1.5, -1.0, 4.0, [-1.0, 4.0]), dict.fromkeys(("env_steps", "updates", "seconds"), curve),
        {"restarts.killed": 3},
    )  # fmt: skip


@pytest.fixture
def comparison() -> Comparison:
    variants = [variant("serial", [0.0, 4.0, 9.0]), variant("a:x=<b>&c", [1.0, 2.0], never=True), variant("late", [])]
    cells = [
        CellResult("serial", 0, "finished", None, "c/0", {"held_out_return": 6.0, "env_steps_to_threshold": 200.0}),
        CellResult("a:x=<b>&c", 0, "failed", "it <broke> & stopped", "c/1", {}),
    ]
    return Comparison("Some-v0", {"env_steps": 300.0}, 5.0, [0, 1], "qfleet compare 'x&y'", {}, variants, cells)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: saved.append(figure))
    return saved


def test_page_is_well_formed_and_says_it_all(comparison: Comparison) -> None:
    root = ElementTree.fromstring(page(comparison))
    text = " ".join("".join(root.itertext()).split())
    for part in [
        "Some-v0: 2 seeds, 300 env steps each", "1 of 2 runs finished, 1 failed", "a:x=<b>&c", "7.0", "6.0..8.0",
        "minus serial", "1.5", "-1.0..4.0", "never", "200..never", "1 of 2", "restarts: killed 3", "4 MB",
        "failed: it <broke> & stopped", "qfleet compare 'x&y'", "late: 0 of 2 seeds are finished", "one thread",
    ]:  # fmt: skip
        assert part in text, part


def test_page_fetches_nothing_and_runs_nothing(comparison: Comparison) -> None:
    text = page(comparison)
    root = ElementTree.fromstring(text)
    assert not [element for element in root.iter() if element.tag.removeprefix(XHTML) in ("script", "link", "img")]
    assert not [name for element in root.iter() for name in element.attrib if name in ("src", "href")]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/1999/xhtml)", text)
    assert "default-src 'none'" in text


def test_page_works_by_keyboard_in_the_dark_and_on_a_phone(comparison: Comparison) -> None:
    text = page(comparison)
    root = ElementTree.fromstring(text)
    assert root.get("lang") == "en"
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
    dark = text.partition("prefers-color-scheme: dark")[2]
    for number, one in enumerate(comparison.variants):
        (label,) = [element for element in root.iter(f"{XHTML}label") if one.label in "".join(element.itertext())]
        (box,) = label.iter(f"{XHTML}input")
        assert box.get("id") == f"show-{number}"
        # Unchecked, it takes its curve away; and it has a colour by day and by night.
        assert f"body:has(#show-{number}:not(:checked)) .series-{number} {{ display: none; }}" in text
        assert f"--series-{number}: {style_of(number)[0]};" in text
        assert re.search(rf"--series-{number}: #[0-9a-f]{{6}};", dark)
    frames = [element for element in root.iter(f"{XHTML}div") if element.get("class") == "scroll"]
    assert len(frames) == 2
    assert all(frame.get("tabindex") == "0" and frame.get("aria-label") for frame in frames)


def test_charts_are_drawn_to_scale_and_told_in_words(comparison: Comparison) -> None:
    root = ElementTree.fromstring(page(comparison))
    charts = [element for element in root.iter(f"{XHTML}svg") if element.get("role") == "img"]
    assert len(charts) == 3
    titles = [chart.findtext(f"{XHTML}title") for chart in charts]
    assert titles[2] == "Validation return against seconds of training"
    assert "serial ends at 9.0 (8.0 to 10.0)" in str(charts[0].findtext(f"{XHTML}desc"))
    groups = {group.get("class"): group for group in charts[0].iter(f"{XHTML}g")}
    assert groups.keys() == {"series-0", "series-1"}, "what has no values has no line"
    line = groups["series-0"].find(f"{XHTML}polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in str(line.get("points")).split()]
    # x from 0 to 300 lies between 52 and 348 pixels: 100, 200 and 300 a third of that apart.
    assert [x for x, _ in points] == pytest.approx([52 + 296 / 3, 52 + 2 * 296 / 3, 348], abs=0.06)
    # y from -1 to 10, with 4% of 11 on either side, lies between 228 and 10; 0, 4, 9 go up.
    low, height = -1 - 0.44, 11 + 0.88
    assert [y for _, y in points] == pytest.approx([228 - (y - low) / height * 218 for y in (0, 4, 9)], abs=0.06)
    assert len(charts[0].findall(f"{XHTML}line[@class='threshold']")) == 1


def test_picture_has_three_panels_with_bands_and_a_legend_outside(
    comparison: Comparison, figures: list[Figure], tmp_path: Path
) -> None:
    draw_picture(comparison, tmp_path)
    (figure,) = figures
    assert [axes.get_xlabel() for axes in figure.axes] == ["env steps", "updates", "seconds of training"]
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["serial", "a:x=<b>&c", "late (0 of 2 seeds)", "threshold 5"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert lines["serial"].get_xydata().tolist() == [[100, 0], [200, 4], [300, 9]]
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (-1.0, 10.0)


def test_nothing_finished_is_no_picture_and_no_page(comparison: Comparison, tmp_path: Path) -> None:
    nothing = Comparison("E", {"updates": 3.0}, None, [0], "", {}, [variant("late", [])], [])
    with pytest.raises(QfleetError, match="nothing to draw yet"):
        draw_picture(nothing, tmp_path)
    assert write_report(nothing, tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.json"]
    ElementTree.fromstring(page(nothing))


def test_report_is_three_files_and_a_picture_that_fails_is_a_warning(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_report(comparison, tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.html", "comparison.json", "comparison.png"]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")

    def fail(*args: object) -> Callable[..., None]:
        raise OSError("no fonts")

    monkeypatch.setattr("qfleet.comparison.report.draw_picture", fail)
    assert write_report(comparison, tmp_path) == ["comparison.png was not drawn: OSError: no fonts"]


def test_numbers_are_written_by_their_kind() -> None:
    assert written(475.04, "return") == "475.0"
    assert written(20_016.0, "count") == "20,016"
    assert written(float("inf"), "seconds") == "never"
    assert written(47_160_000.0, "bytes") == "47.2 MB"
    assert written(1.25e9, "bytes") == "1.25 GB"
    assert written(0.0, "bytes") == "0"
    assert interval(Estimate(4.5e6, 4e6, 5e6, [4e6, 5e6]), "bytes") == "4..5 MB"
    assert interval(Estimate(1.0, 1.0, 1.0, [1.0]), "lag") == ""
    assert (middle(None, "lag"), interval(None, "lag")) == ("-", "")


def test_notes_say_what_few_seeds_are_worth(comparison: Comparison) -> None:
    assert notes(comparison)[0] == "With 2 seeds a 95% bootstrap interval goes from the least to the most."
    assert any("one thread" in line for line in notes(comparison))
