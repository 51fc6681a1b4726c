"""The page at / in Chromium, where there is one: it describes the policy, and asks for a token where one is due."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .conftest import TOKEN


def test_chromium_shows_what_is_served(
    start_server: Callable[..., Any], model: Path, shown: Callable[[str], str]
) -> None:
    server = start_server(model)
    page = shown(f"{server.url}/")
    assert "<dt>Environment</dt><dd>CartPole-v1</dd>" in page
    assert f"curl {server.url}/v1/act -H 'Content-Type" in page
    assert 'id="token"' not in page
    assert server.stop() == (0, "")


def test_a_server_with_a_token_is_asked_nothing_before_it_is_typed_in(
    start_server: Callable[..., Any], model: Path, tmp_path: Path, shown: Callable[[str], str]
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    page = shown(f"{start_server(model, '--token-file', tmp_path / 'token').url}/")
    assert re.search('<label for="token">.*id="token"', page, re.DOTALL)
    assert "this server wants a token" in page
    assert "CartPole" not in page
