"""Runs benchmark commands side by side and writes what they measured.

A system is a command that prints one JSON object as its last line. Systems are interleaved over seeds (A B A B), never
run at once, so a machine that slows down slows them all; every result goes to a JSON Lines file as soon as it is in.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | int | bool | None"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
PACKAGES = ("qfleet", "stable_baselines3", "gymnasium", "torch", "numpy")


class BenchmarkError(RuntimeError):
    """A command failed, or printed no JSON line."""


@dataclass(frozen=True)
class System:
    """One contestant: how to start it for a seed, with how many threads (None: its own choice), for which seeds."""

    name: str
    command: Callable[[int], list[str]]
    threads: int | None = None
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """One finished command: its JSON, and the wall seconds of the whole process as seen from outside."""

    system: str
    seed: int
    command: list[str]
    wall_seconds: float
    result: dict[str, Json]

    def number(self, key: str) -> float:
        """`result[key]`, where a dot enters a nested object ("eval.mean_return"); NaN where it is absent or null."""
        value: Json = self.result
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return float(value) if isinstance(value, (int, float)) else float("nan")


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of `count` values."""

    minimum: float
    median: float
    maximum: float
    count: int

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        finite = sorted(value for value in values if value == value)
        return Spread(finite[0], statistics.median(finite), finite[-1], len(finite)) if finite else None

    def text(self, digits: int = 1) -> str:
        return " / ".join(f"{value:,.{digits}f}" for value in (self.minimum, self.median, self.maximum))


@dataclass
class Record:
    """All finished runs of one benchmark, kept on disk as they come."""

    path: Path
    runs: list[Run] = field(default_factory=list)

    def add(self, run: Run) -> None:
        self.runs.append(run)
        with self.path.open("a") as file:
            file.write(json.dumps(vars(run)) + "\n")

    def of(self, system: str) -> list[Run]:
        return [run for run in self.runs if run.system == system]


def last_json_object(text: str) -> dict[str, Json] | None:
    """The last line that is a JSON object; anything printed around it is ignored."""
    for line in reversed(text.splitlines()):
        if line.lstrip().startswith("{"):
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(value, dict):
                return value
    return None


def run_command(command: Sequence[str], threads: int | None = None, timeout_s: float = 3600.0) -> dict[str, Json]:
    """Run to the end; its last JSON object. Raises BenchmarkError with the end of its standard error."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{shlex.join(command)}: no end after {timeout_s:.0f} s") from error
    except FileNotFoundError as error:
        raise BenchmarkError(f"{command[0]}: no such command") from error
    result = last_json_object(done.stdout)
    if result is None:
        raise BenchmarkError(f"{shlex.join(command)}: exit status {done.returncode}, no JSON\n{done.stderr[-2000:]}")
    return result


def interleaved(systems: Sequence[System]) -> Iterator[tuple[System, int]]:
    """Round by round: the first seed of every system, then the second of every system that has one, and so on."""
    for position in range(max((len(system.seeds) for system in systems), default=0)):
        for system in systems:
            if position < len(system.seeds):
                yield system, system.seeds[position]


def run_systems(systems: Sequence[System], record: Record, describe: Callable[[Run], str], timeout_s: float) -> None:
    """Run every system on its seeds, interleaved; a failed run is reported on standard error and recorded as failed."""
    for system, seed in interleaved(systems):
        command = system.command(seed)
        started = time.perf_counter()
        try:
            result = run_command(command, system.threads, timeout_s)
        except BenchmarkError as error:
            print(f"{system.name}, seed {seed}: FAILED: {error}", file=sys.stderr, flush=True)
            result = {"failed": str(error)}
        run = Run(system.name, seed, command, time.perf_counter() - started, result)
        record.add(run)
        if "failed" not in result:
            print(f"{system.name}, seed {seed}: {describe(run)}", file=sys.stderr, flush=True)


def hardware_line() -> str:
    """Processor, cores this process may use, memory, system; for the head of every table."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = ""
    if hasattr(os, "sysconf"):
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return f"{model}, {cores} core{'s' * (cores != 1)}{memory}, {platform.system()}"


def versions_line(python: str = sys.executable, packages: Sequence[str] = PACKAGES) -> str:
    """Versions as the interpreter that runs the systems sees them."""
    code = (
        "import platform\nfrom importlib.metadata import PackageNotFoundError, version\nfound = []\n"
        f"for name in {tuple(packages)!r}:\n"
        "    try: found.append(f'{name} {version(name)}')\n"
        "    except PackageNotFoundError: pass\n"
        "print(', '.join([f'Python {platform.python_version()}', *found]))"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def markdown_page(title: str, python: str, table: str, notes: Sequence[str]) -> str:
    """Heading, machine, versions, the command that made it, table, notes: ready to be included in the documentation."""
    command = shlex.join(["python", *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv)])
    head = [f"## {title}", "", f"{hardware_line()}. {versions_line(python)}. {time.strftime('%B %Y')}.", ""]
    return "\n".join([*head, f"`{command}`", "", table, "", *(f"- {note}" for note in notes)]) + "\n"


def write_page(page: str, out: Path | None) -> None:
    print(page)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page)


def record_beside(out: Path | None, default_name: str) -> Record:
    """The JSON Lines file of raw results beside the page, or in the working directory; an older one is replaced."""
    path = out.with_suffix(".jsonl") if out is not None else Path(default_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return Record(path)


def qfleet_command(override: str | None) -> list[str]:
    """The `qfleet` beside the running interpreter, else the one on the path; or the override, split like the shell."""
    if override:
        return shlex.split(override)
    beside = Path(sys.executable).with_name("qfleet")
    return [str(beside) if beside.exists() else "qfleet"]


def ratio(slower: float, faster: float) -> str:
    return f"{slower / faster:.1f}" if faster > 0 else "-"
