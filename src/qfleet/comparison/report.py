"""What a comparison leaves in its folder: comparison.json, a picture, and a page. Floor 7."""

from __future__ import annotations

import json
from pathlib import Path

from qfleet.comparison.cells import COMPARISON_NAME
from qfleet.comparison.page import page
from qfleet.comparison.picture import PICTURE_NAME, draw_picture
from qfleet.comparison.results import Comparison
from qfleet.storage import write_file

PAGE_NAME = "comparison.html"

__all__ = ["PAGE_NAME", "PICTURE_NAME", "write_json", "write_report"]


def write_json(comparison: Comparison, folder: Path) -> None:
    """comparison.json: all numbers and curves."""
    write_file(folder, COMPARISON_NAME, json.dumps(comparison.to_json(), indent=1).encode())


def write_report(comparison: Comparison, folder: Path) -> list[str]:
    """comparison.json, and where a cell is finished comparison.png and comparison.html.

    Returns:
        warnings, a line each.
    """
    write_json(comparison, folder)
    if not comparison.count("finished"):
        return []
    write_file(folder, PAGE_NAME, page(comparison).encode())
    try:
        draw_picture(comparison, folder)
    except Exception as error:  # as for a learning curve: a picture is worth no failure
        return [f"{PICTURE_NAME} was not drawn: {type(error).__name__}: {error}"]
    return []
