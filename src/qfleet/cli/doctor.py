"""`qfleet doctor`: what this machine offers, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples

EXAMPLES = examples("qfleet doctor", "qfleet doctor --json")
State = Literal["ok", "note", "problem"]
# Each extra of pyproject.toml, with a module that it brings and what that is for.
EXTRAS = {
    "box2d": ("Box2D", "LunarLander-v3 and the other Box2D environments"),
    "ray": ("ray", "--engine ray: roles as processes of a cluster"),
    "atari": ("ale_py", "ALE/Pong-v5 and the other Atari games"),
    "minatar": ("minatar", "MinAtar's five games"),
    "compression": ("lz4", "replay.compression: frames kept compressed"),
    "video": ("imageio_ffmpeg", "qfleet evaluate --video out.mp4"),
    "onnx": ("onnxscript", "qfleet export --format onnx"),
    "client": ("httpx", "qfleet.client: asking a served policy"),
    "serve": ("uvicorn", "qfleet serve"),
    "wandb": ("wandb", "logging.wandb: numbers to Weights & Biases too"),
    "mlflow": ("mlflow", "logging.mlflow: numbers to MLflow too"),
    "ray-serve": ("fastapi", "qfleet serve --engine ray"),
}
MIN_PYTHON = (3, 11)
GIB = 1 << 30
LOW_MEMORY, NO_MEMORY = 2 * GIB, GIB // 2
LOW_DISK, NO_DISK = 2 * GIB, 100 << 20
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to do where that is not well."""

    name: str
    state: State
    value: str
    advice: str = ""


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("doctor", epilog=EXAMPLES)(doctor)


def doctor(as_json: JsonOption = False, quiet: QuietOption = False, debug: DebugOption = False) -> int:
    """Check this machine: what qfleet can use, what is missing and what to do. Exit code 1 if there is a problem."""
    out = Output(as_json, quiet)
    findings = []
    for check in CHECKS:
        for finding in check():
            findings.append(finding)
            advice = f"; {finding.advice}" if finding.advice else ""
            out.say(f"{finding.state:<8} {finding.name:<12} {finding.value}{advice}")
    problems = [finding for finding in findings if finding.state == "problem"]
    found = [
        {"name": finding.name, "state": finding.state, "value": finding.value, "advice": finding.advice}
        for finding in findings
    ]
    verdict = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}" if problems else "no problem found"
    out.result({"ok": not problems, "checks": found}, verdict)
    return 1 if problems else 0


def check_python() -> Iterator[Finding]:
    """Interpreter and platform."""
    version = platform.python_version()
    is_new = sys.version_info[:2] >= MIN_PYTHON
    yield Finding("python", "ok" if is_new else "problem", version, "" if is_new else "qfleet needs 3.11 or newer")
    yield Finding("platform", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")


def check_cores() -> Iterator[Finding]:
    """Cores that this process may use, and what they can do."""
    cores, present = usable_cores(), os.cpu_count() or 1
    yield Finding("cores", "ok", f"{cores:g} usable of {present}")
    flags = cpu_flags(Path("/proc/cpuinfo"))
    if flags is not None:
        yield Finding("cpu", "ok", " ".join(flag for flag in CPU_FLAGS if flag in flags) or "none of avx2 or newer")


def check_memory() -> Iterator[Finding]:
    """Memory that this process may still take."""
    from qfleet.replay.memory import available_memory

    room = available_memory()
    if room is None:
        yield Finding("memory", "note", "unknown", "nothing on this system tells")
    else:
        state, advice = _by_size(room, LOW_MEMORY, NO_MEMORY, "lower replay.capacity, or free some")
        yield Finding("memory", state, f"{room / GIB:.1f} GiB available", advice)


def check_torch() -> Iterator[Finding]:
    """torch, its threads and what it was built for."""
    try:
        import torch
    except Exception as error:  # a broken install raises anything
        yield Finding("torch", "problem", _first_line(error), "pip install torch")
        return
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    yield Finding("torch", "ok", f"{torch.__version__}, {threads} thread{'s' if threads != 1 else ''}, {capability}")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Finding("cuda", "ok", f"{torch.version.cuda}: {names}")
    elif torch.version.cuda is None:
        yield Finding("cuda", "note", "this torch is built for CPU only", "runs use the CPU")
    else:
        yield Finding(
            "cuda", "note", f"torch is built for CUDA {torch.version.cuda}, no GPU is seen", "runs use the CPU"
        )


def check_numba() -> Iterator[Finding]:
    """numba, which prioritized replay needs, and where it keeps compiled code."""
    if importlib.util.find_spec("numba") is None:
        yield Finding("numba", "problem", "not installed", "pip install numba (prioritized replay needs it)")
        return
    from importlib.metadata import version

    import qfleet.replay

    own = Path(qfleet.replay.__file__).parent / "__pycache__"
    folder = Path(os.environ["NUMBA_CACHE_DIR"]) if os.environ.get("NUMBA_CACHE_DIR") else own
    if is_writable(folder):
        yield Finding("numba", "ok", f"{version('numba')}, cache {folder}")
    else:
        advice = "each start compiles again (seconds); set NUMBA_CACHE_DIR to a folder you can write"
        yield Finding("numba", "note", f"{version('numba')}, cache {folder} is not writable", advice)


def check_gymnasium() -> Iterator[Finding]:
    """gymnasium and the optional packages."""
    try:
        import gymnasium
    except Exception as error:  # a broken install raises anything
        yield Finding("gymnasium", "problem", _first_line(error), "pip install 'gymnasium>=1.2'")
    else:
        yield Finding("gymnasium", "ok", gymnasium.__version__)
    for extra, (module, purpose) in EXTRAS.items():
        if importlib.util.find_spec(module) is not None:
            yield Finding(extra, "ok", f"installed: {purpose}")
        else:
            yield Finding(extra, "note", f"not installed: {purpose}", f"pip install 'qfleet[{extra}]'")


def check_disk() -> Iterator[Finding]:
    """Room and rights where runs are written."""
    free = shutil.disk_usage(Path.cwd()).free
    state, advice = _by_size(free, LOW_DISK, NO_DISK, "checkpoints need room: free some, or use --run-dir elsewhere")
    yield Finding("disk", state, f"{free / GIB:.1f} GiB free in {Path.cwd()}", advice)
    runs = Path("runs")
    if is_writable(runs):
        yield Finding("runs", "ok", f"{runs.absolute()} can be written")
    else:
        yield Finding("runs", "problem", f"{runs.absolute()} cannot be written", "use --run-dir with a folder you own")


CHECKS: list[Callable[[], Iterator[Finding]]] = [
    check_python,
    check_cores,
    check_memory,
    check_torch,
    check_numba,
    check_gymnasium,
    check_disk,
]


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores by affinity, or fewer where a control group's quota allows fewer.

    Args:
        cgroups: where control groups are mounted.
    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = (cgroups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # control groups of version 1
            quota = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return cores
    return min(cores, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cores


def cpu_flags(cpuinfo: Path) -> set[str] | None:
    """What the processor says that it can do; None where nothing tells."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return None
    return next(
        (set(line.split(":", 1)[1].split()) for line in text.splitlines() if line.startswith(("flags", "Features"))),
        None,
    )


def is_writable(folder: Path) -> bool:
    """Whether a file can be made in a folder, or the folder itself in the nearest one above it that exists."""
    nearest = next((path for path in [folder.absolute(), *folder.absolute().parents] if path.exists()), None)
    if nearest is None or not nearest.is_dir():
        return False
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return True
    except OSError:
        return False


def _by_size(room: int, low: int, too_low: int, advice: str) -> tuple[State, str]:
    if room < too_low:
        return "problem", advice
    return ("note", advice) if room < low else ("ok", "")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
