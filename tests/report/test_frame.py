"""The frame of pages, parsed strictly."""

from __future__ import annotations

import base64
import hashlib
import re
from xml.etree import ElementTree

from qfleet.report.frame import charts, choice, scrolled, table, td, th, write_page
from qfleet.report.palette import style_of

XHTML = "{http://www.w3.org/1999/xhtml}"


def test_page_escapes_its_title_and_fetches_nothing() -> None:
    text = write_page("a <b> & 'c'", ["<p>body</p>"])
    root = ElementTree.fromstring(text)
    assert root.get("lang") == "en"
    assert root.findtext(f"{XHTML}body/{XHTML}main/{XHTML}h1") == "a <b> & 'c'"
    assert root.findtext(f"{XHTML}head/{XHTML}title") == "a <b> & 'c'"
    assert root.findtext(f"{XHTML}body/{XHTML}main/{XHTML}p") == "body"
    (policy,) = [meta.get("content") for meta in root.iter(f"{XHTML}meta") if meta.get("http-equiv")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/1999/xhtml)", text)
    assert 'content="width=device-width, initial-scale=1"' in text


def test_page_allows_pictures_and_its_own_script_only() -> None:
    script = "void 0;"
    text = write_page("t", [], has_images=True, script=script)
    digest = base64.b64encode(hashlib.sha256(b"void 0;").digest()).decode()
    assert f"img-src data:; script-src 'sha256-{digest}'; connect-src 'self'\"" in text
    assert ElementTree.fromstring(text).findtext(f"{XHTML}body/{XHTML}script") == script


def test_boxes_hide_series_which_have_a_colour_by_day_and_by_night() -> None:
    text = write_page("t", choice(["one", "a<b"]), num_series=2)
    labels = list(ElementTree.fromstring(text).iter(f"{XHTML}label"))
    assert ["".join(label.itertext()) for label in labels] == ["one", "a<b"]
    day, _, night = text.partition("prefers-color-scheme: dark")
    for number, label in enumerate(labels):
        (box,) = label.iter(f"{XHTML}input")
        assert box.get("id") == f"show-{number}"
        assert f"body:has(#show-{number}:not(:checked)) .series-{number} {{ display: none; }}" in text
        assert f"--series-{number}: {style_of(number)[0]};" in day
        assert re.search(rf"--series-{number}: #[0-9a-f]{{6}};", night)
    assert "--series-2" not in text


def test_tables_scroll_by_keyboard_and_escape() -> None:
    (frame,) = ElementTree.fromstring(f"<p>{''.join(table('a & b', ['x', 'y<z'], [['<1>', '2'], ['3', '']]))}</p>")
    assert (frame.get("class"), frame.get("tabindex"), frame.get("aria-label")) == ("scroll", "0", "a & b")
    rows = [["".join(one.itertext()) for one in row] for row in frame.iter("tr")]
    assert rows == [["x", "y<z"], ["<1>", "2"], ["3", ""]]
    assert [one.get("scope") for one in frame.iter("th")] == ["col", "col", "row", "row"]
    assert "".join(scrolled("n", [th("<"), td("1", "&")])).endswith(
        '<table><th scope="col">&lt;</th><td>1<small>&amp;</small></td></table></div>'
    )


def test_charts_without_anything_to_show_are_left_out() -> None:
    assert "".join(charts(["<svg/>", ""])) == '<div class="charts"><figure><svg/></figure></div>'
