"""What a run takes of the machine it is on: device, threads, and its run directory for itself. Floor 6."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

import torch

from qfleet.errors import QfleetError, UsageError
from qfleet.placement.processes import keep_large_blocks
from qfleet.plugins import load_plugin
from qfleet.run_config import RunConfig
from qfleet.storage import write_file
from qfleet.types import EnvSpec
from qfleet.version import __version__


def choose_device(wanted: str, spec: EnvSpec) -> str:
    """cpu or cuda; "auto" takes a GPU for images only, for a small network waits longer for one than it computes.

    Raises:
        UsageError: cuda was asked for and there is none.
    """
    if wanted == "cpu":
        return "cpu"
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError("device = 'cuda': torch sees no CUDA device here; use --set device=cpu, or auto")
    is_image = len(spec.obs_shape) >= 2
    return "cuda" if wanted == "cuda" or (available and is_image) else "cpu"


def choose_num_threads(config: RunConfig, spec: EnvSpec) -> int:
    """torch's threads in each process of this run.

    Small networks lose more to a second thread's wake-up than it brings, so vectors get one thread, images all cores;
    where every role has a process of its own, each gets one, for together they fill the cores.
    """
    if config.num_threads != "auto":
        return config.num_threads
    if not is_one_process(config):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if len(spec.obs_shape) >= 2 else 1


def is_one_process(config: RunConfig) -> bool:
    """Whether all roles share this process; an engine's class says `is_one_process = False` where they do not."""
    return bool(getattr(load_plugin("engine", config.engine.name).Engine, "is_one_process", True))


def set_up_torch(config: RunConfig, spec: EnvSpec) -> int:
    """Set this process's thread count and flush denormals; returns the thread count."""
    num_threads = choose_num_threads(config, spec)
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
    if len(spec.obs_shape) >= 2:
        keep_large_blocks()
    return num_threads


MACHINE_NAME = "machine.json"
MACHINE_FORMAT = 1
MAX_STARTS = 100  # of one run that are remembered
PACKAGES = ("numpy", "gymnasium", "ray", "ale-py")


def describe_machine() -> dict[str, str]:
    """What a number needs beside it to mean something."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": str(cores),
        "gpu": device,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "qfleet": __version__,
    }


def note_machine(run_dir: Path, **beside: str) -> None:
    """Add to run_dir/machine.json that the run starts, or goes on, here and now; a damaged file is begun anew.

    Args:
        run_dir: the run directory.
        beside: what else is worth knowing, such as the device.
    """
    start = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **describe_machine(), **_versions(), **beside}
    starts = [*read_machines(run_dir), start][-MAX_STARTS:]
    body = {"format": MACHINE_FORMAT, "starts": starts}
    write_file(run_dir, MACHINE_NAME, json.dumps(body, indent=1).encode())


def read_machines(run_dir: Path) -> list[dict[str, str]]:
    """Where a run was started and resumed, in order; empty where nothing was written, or nothing that can be read."""
    try:
        body = json.loads((run_dir / MACHINE_NAME).read_bytes())
        return [{str(key): str(value) for key, value in start.items()} for start in body["starts"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _versions() -> Mapping[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


LOCK_NAME = ".lock"
DETACHED_NAME = "detached.json"


class RunLock:
    """Holds a run directory for one process; the operating system lets go of it however the process ends.

    Args:
        run_dir: made if it is not there yet.

    Raises:
        UsageError: another process is running in it.
        QfleetError: the directory cannot be made.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file: IO[str] | None = None
        path = run_dir / LOCK_NAME
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w")
        except OSError as error:
            raise QfleetError(f"cannot write {path}: {error.strerror or error}; choose another --run-dir") from error
        try:
            import fcntl
        except ImportError:  # Windows has no flock: there the user must take care
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UsageError(f"{run_dir}: another process is training here; wait for it, or stop it") from None

    def release(self) -> None:
        """Let go."""
        if self._file is not None:
            self._file.close()


def is_running(run_dir: Path) -> bool:
    """Whether a process is training in a run directory; where the system has no locks, it is taken to be."""
    path = run_dir / LOCK_NAME
    try:
        import fcntl
    except ImportError:
        return path.exists()
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
