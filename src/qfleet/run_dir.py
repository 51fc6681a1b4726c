"""Run directories: which one is a run, what a new one is called, what goes when it is begun anew.

Floor 6; it imports nothing heavy, so that a wrong name is refused at once.
"""

from __future__ import annotations

import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from qfleet.errors import UsageError

if TYPE_CHECKING:
    from qfleet.run_config import RunConfig


def refuse_others(run_dir: Path) -> None:
    """Refuse what is no run, or several.

    Raises:
        UsageError: one line, naming what to give instead.
    """
    if (run_dir / "config.toml").is_file() or (run_dir / "best").is_dir():
        return
    members = sorted(path.parent.name for path in run_dir.glob("seed-*/config.toml"))
    if members:
        raise UsageError(f"{run_dir}: several runs; give one of them: {run_dir / members[0]} (of {', '.join(members)})")
    is_file = run_dir.exists() and not run_dir.is_dir()
    advice = "; of exported policies only .onnx files are read back" if is_file else ""
    raise UsageError(f"{run_dir}: {why_no_run(run_dir)}{advice}")


def why_no_run(path: Path) -> str:
    """In words, what is at a path instead of a run."""
    if not path.exists():
        return "no such directory"
    return "no run here (config.toml is missing)" if path.is_dir() else "a file, not a run directory"


def default_run_dir(config: RunConfig) -> Path:
    """runs/<env>-<algo>-<time>-seed<seed>, not existing yet."""
    env_id = re.sub(r"[^A-Za-z0-9.]+", "-", config.env.id or "env").strip("-")
    stem = f"{env_id}-{config.algo.name}-{datetime.now():%Y%m%d-%H%M%S}-seed{config.seed}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path


def clear_run_dir(run_dir: Path, kept: tuple[str, ...]) -> None:
    """Remove a run directory, but for the names kept (a detached run's last words)."""
    if not kept:
        shutil.rmtree(run_dir, ignore_errors=True)
        return
    for path in run_dir.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in kept:
            path.unlink(missing_ok=True)
