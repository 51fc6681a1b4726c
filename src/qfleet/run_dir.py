"""Which directory is a run. Floor 6; it imports nothing heavy, so that a wrong name is refused at once."""

from __future__ import annotations

from pathlib import Path

from qfleet.errors import UsageError


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
    if not run_dir.exists():
        raise UsageError(f"{run_dir}: no such directory")
    raise UsageError(f"{run_dir}: no run here (config.toml is missing)")
