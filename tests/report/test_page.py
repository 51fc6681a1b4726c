"""The report of runs: parsed strictly, and opened in Chromium where there is one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gymnasium as gym
import numpy as np
import pytest

from qfleet.report.make import make_report
from qfleet.report.page import report_page, state_of, title_of
from qfleet.report.strip import Strip, join, png_uri, shrink, strip_of

XHTML = "{http://www.w3.org/1999/xhtml}"
WriteRun = Callable[..., Path]


def text_of(page: str) -> str:
    return " ".join("".join(ElementTree.fromstring(page).itertext()).split())


def titles(page: str) -> list[str]:
    root = ElementTree.fromstring(page)
    charts = [element for element in root.iter(f"{XHTML}svg") if element.get("aria-labelledby")]
    return [str(chart.findtext(f"{XHTML}title")) for chart in charts]


def test_one_run(write_run: WriteRun) -> None:
    report = make_report([write_run("a", seed=4)], has_film=False, command="qfleet report 'a&b'")
    page = report_page(report)
    text = text_of(page)
    assert title_of(report) == "CartPole-v1: dqn x serial x inline, seed 4"
    for part in [
        "1 run: 1 finished; 200 env steps.", "A single seed says nothing of the spread", "env steps to it",
        "reached its target", "1 of 1", "environmentlearnerwaiting", "50%30%20%", "8.007.902,000200",
        "killedtimeout", "13", "algo.gamma", "qfleet report 'a&b'", "Dotted: the target, 25",
    ]:  # fmt: skip
        assert part in text, part
    assert titles(page) == [
        "Validation return against env steps",
        "Validation return against updates",
        "Validation return against seconds of training",
        "Training return, exploring, against env steps",
        "Env steps per second against seconds of training",
        "Staleness of pushes",
    ]
    assert "<fieldset>" not in page, "nothing to choose between"
    assert "<script" not in page


def test_several_configurations_are_told_apart(write_run: WriteRun) -> None:
    paths = [write_run("a"), write_run("b", seed=1), write_run("c<&>", **{"algo.gamma": 0.5}), write_run("no")]
    (paths[3] / "metrics.jsonl").write_text("3\n")
    report = make_report(paths, has_film=False)
    page = report_page(report)
    root = ElementTree.fromstring(page)
    text = text_of(page)
    assert state_of(report) == "3 runs: 3 finished, 1 not readable; 600 env steps."
    assert "no: a damaged run (TypeError" in text
    assert "c<&>" in text
    assert len([box for box in root.iter(f"{XHTML}input") if str(box.get("id")).startswith("show-")]) == 2
    (region,) = [one for one in root.iter(f"{XHTML}div") if one.get("aria-label") == "Differences"]
    rows = [["".join(one.itertext()) for one in row] for row in region.iter(f"{XHTML}tr")]
    assert ["algo.gamma", "0.99", "0.5"] in rows
    assert all(one.get("tabindex") == "0" for one in root.iter(f"{XHTML}div") if one.get("class") == "scroll")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/1999/xhtml)", page)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_the_target_is_drawn_where_the_page_says_so(write_run: WriteRun) -> None:
    paths = [write_run("a"), write_run("b", summary={"target_return": None}, **{"algo.gamma": 0.5})]
    for runs, has_target in ((paths, True), (paths[1:], False)):
        page = report_page(make_report(runs, has_film=False))
        assert ("Dotted: the target, 25." in page) == has_target
        assert ('class="threshold"' in page) == has_target


def test_fifty_runs(write_run: WriteRun) -> None:
    paths = [write_run(f"r{number}", **{"algo.gamma": 0.5 + number / 200}) for number in range(50)]
    page = report_page(make_report(paths, has_film=False))
    assert "50 runs of 50 configurations" in text_of(page)
    assert "The histograms are of the first 8 configurations." in text_of(page)
    assert len(page) < 2_000_000


def test_a_run_that_has_written_nothing_is_a_page_too(write_run: WriteRun) -> None:
    page = report_page(make_report([write_run("a", curve=[], summary=None)]))
    assert "1 run: 1 stopped; 0 env steps." in text_of(page)
    assert titles(page) == []


def test_frames_are_shrunk_and_joined() -> None:
    frame = np.zeros((4, 5, 3), dtype=np.uint8)
    frame[0, 0] = 200
    # The first square of four pixels has one of 200: 50. The odd column falls off.
    small = shrink(frame, 2)
    assert small.shape == (2, 2, 3)
    assert small[0, 0].tolist() == [50, 50, 50]
    strip = join([small, small], gap=1)
    assert strip.shape == (2, 5, 3)
    assert strip[:, 2].tolist() == [[128] * 3] * 2
    assert png_uri(strip).startswith("data:image/png;base64,iVBOR")


class Drawn(gym.Env[Any, Any]):
    """Ten steps; the frame is as bright as the step's number."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's own name
    observation_space = gym.spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = gym.spaces.Discrete(4)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.step_number = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(4, dtype=np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        return np.zeros(4, dtype=np.float32), 1.0, self.step_number == 10, False, {}

    def render(self) -> Any:
        return np.full((6, 8, 3), self.step_number, dtype=np.uint8) if self.render_mode == "rgb_array" else None


def test_the_film_goes_from_the_first_frame_to_the_last(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gym.register("qfleet-test/Drawn-v0", Drawn)
    strips: list[Any] = []
    monkeypatch.setattr("qfleet.report.strip.png_uri", lambda strip: strips.append(strip) or "data:")
    try:
        run = experiment("qfleet-test/Drawn-v0")
        run.run()
        seen = strip_of(run.run_dir)
    finally:
        del gym.registry["qfleet-test/Drawn-v0"]
    assert (seen.episode_return, seen.num_env_steps, seen.is_whole) == (10.0, 10, True)
    (strip,) = strips
    assert [int(strip[0, place * 12, 0]) for place in range(6)] == [0, 2, 4, 6, 8, 10]


def test_what_draws_nothing_says_so(experiment: Any) -> None:
    run = experiment("qfleet/Identity-v0")
    run.run()
    report = make_report([run.run_dir])
    assert isinstance(report.film, str)
    assert "\n" not in report.film
    assert f"No frames: {report.film}." in text_of(report_page(report))


def test_frames_are_in_the_page(write_run: WriteRun) -> None:
    report = make_report([write_run("a")], has_film=False)
    seen = Strip("data:image/png;base64,AAAA", 40, 10, 7.0, 12, False)
    page = report_page(type(report)(report.groups, (), seen, report.runs[0]))
    (picture,) = ElementTree.fromstring(page).iter(f"{XHTML}img")
    assert picture.get("src") == seen.picture
    assert "its first 12 env steps; return 7" in str(picture.get("alt"))
    assert "img-src data:" in page


def test_chromium_shows_it_without_a_complaint(
    write_run: WriteRun, tmp_path: Path, shown: Callable[[str], str]
) -> None:
    report = make_report([write_run("a"), write_run("b", **{"algo.gamma": 0.5})], has_film=False)
    picture = png_uri(np.zeros((2, 2, 3), dtype=np.uint8))
    report = type(report)(report.groups, (), Strip(picture, 2, 2, 1.0, 1, True), report.runs[0])
    (tmp_path / "report.html").write_text(report_page(report), "utf-8")
    page = shown(f"file://{tmp_path / 'report.html'}")
    for part in ("Validation return against env steps", "show-1", "Hardware and versions", "The best policy at play"):
        assert part in page
