"""Every engine in turn, and a gate at which a call can be held without a sleep, in whichever process it runs."""

from __future__ import annotations

import importlib
import os
import pkgutil
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

import qfleet.engines
from qfleet.engines.base import Engine

NAMES = [info.name for info in pkgutil.iter_modules(qfleet.engines.__path__) if info.name != "base"]
assert NAMES, "no engine found"


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    module = importlib.import_module(f"qfleet.engines.{request.param}")
    made = module.Engine(module.Config(), 0)
    yield made
    made.close()


class Gate:
    """Two named pipes: a held call writes a byte into the first and reads one from the second."""

    def __init__(self, folder: Path) -> None:
        self.paths = (str(folder / "begun"), str(folder / "released"))
        for path in self.paths:
            os.mkfifo(path)
        # Open for both reading and writing, so that no end ever waits for the other one to be opened.
        self._begun, self._released = (os.open(path, os.O_RDWR) for path in self.paths)

    def wait_until_one_has_begun(self) -> None:
        assert select.select([self._begun], [], [], 60)[0], "no held call has begun"
        os.read(self._begun, 1)

    def let_one_go(self) -> None:
        os.write(self._released, b"x")


@pytest.fixture
def gate(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    for _ in range(100):  # whoever is still held goes, before the engine is closed
        made.let_one_go()
