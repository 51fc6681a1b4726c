"""`qfleet train --detach`: leave a run on its cluster, and say how to come back to it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from qfleet.cli.console import Output

if TYPE_CHECKING:
    from qfleet.experiment import Experiment


def detach(experiment: Experiment, out: Output) -> int:
    """Leave an experiment on its cluster, and say how to come back to it."""
    from qfleet.detached import begin

    out.say(experiment.describe())
    contact = begin(experiment)
    folder = shlex.quote(str(experiment.run_dir))
    out.say(f"detached: it runs on {contact.address}, whatever happens to this terminal")
    out.say(f"  qfleet attach {folder}         shows it; Ctrl-C leaves again")
    out.say(f"  qfleet attach {folder} --stop  saves and stops it")
    out.result(
        {"run_dir": str(experiment.run_dir), "address": contact.address, "actor": contact.actor},
        str(experiment.run_dir) if out.quiet else None,
    )
    return 0
