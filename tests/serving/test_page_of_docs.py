"""The Python of docs/serving.md runs: against a copy of an exported policy, and against a running server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_the_python_of_the_page_runs(
    start_server: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    (tmp_path / "runs" / "cartpole").mkdir(parents=True)
    shutil.copy(model, tmp_path / "runs" / "cartpole" / "policy.onnx")
    monkeypatch.chdir(tmp_path)
    server = start_server(model)
    actions = []
    for block in found:
        names: dict[str, Any] = {}
        exec(block.replace("http://127.0.0.1:8000", server.url), names)
        actions.append(names["action"])
    assert actions[0] == actions[1]
    assert actions[0] in (0, 1)
