"""What importing the package does to the process: OpenMP's idle threads give the cores back, unless told otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASK = "import os, qfleet; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_idle_threads_do_not_spin_for_long(given: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    answer = subprocess.run([sys.executable, "-c", ASK], env=clean | given, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == expected
