"""How runs are cut and compared in the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qfleet.experiment import Experiment
from qfleet.session import CheckpointSaved


def records(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on how fast this machine is."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key and "share" not in key} for line in lines]


def stop_after_checkpoint(experiment: Experiment, number: int, num_more_events: int) -> None:
    """Run until checkpoint `number` is committed and a few events longer, then drop everything."""
    events = experiment.stream()
    seen = 0
    for event in events:
        seen += isinstance(event, CheckpointSaved)
        if seen == number:
            break
    assert seen == number
    for _ in range(num_more_events):  # work that is lost
        next(events)
    events.close()
