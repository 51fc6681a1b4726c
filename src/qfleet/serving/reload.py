"""New models while the server runs: a changed file, a run that is followed, or a request to reload.

    changed file -> read -> golden observations -> same shapes as before? -> swapped, or refused and the old one goes on

Each worker watches the file for itself, so a change reaches all of them. Of the workers that follow a run one exports;
the lock beside the file says which. A worker that is started again begins with the newest model that any worker took:
the file may be a bad one by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from qfleet.errors import CheckpointError, QfleetError
from qfleet.onnx_policy import OnnxPolicy
from qfleet.serving.batching import Model, open_model
from qfleet.serving.counters import Counters
from qfleet.serving.settings import Settings

logger = logging.getLogger("qfleet.serving")
Signature = tuple[int, int, int]
EXPORT_TRIES = 3
EXPORT_SECONDS = 300.0


class Reloader:
    """Holds the model of one worker and replaces it.

    Args:
        settings: which file, which run, how often to look.
        counters: told of each new model.

    Attributes:
        model: the one that acts; None until the first.
        on_model: called after `model` was replaced.
    """

    def __init__(self, settings: Settings, counters: Counters) -> None:
        self.model: Model | None = None
        self.on_model: Callable[[], None] = lambda: None
        self._settings = settings
        self._counters = counters
        self._path = Path(settings.model)
        self._seen: Signature | None = None
        # Beside what the workers count; a server of one process is not started again.
        self._kept = None if settings.counters is None else Path(settings.counters).with_name("kept.onnx")
        self._lock = asyncio.Lock()
        self._export_lock: IO[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load the first model, and watch.

        Raises:
            CheckpointError: the file is there, and cannot be served.
        """
        if self._kept is not None and self._kept.exists():
            await self._load(self._kept)
            self._seen = None  # what the file holds is tried as any change is
        elif self._path.exists() or not self._settings.watch:
            await self._load(self._path)
        self._tasks.append(asyncio.create_task(self._watch_file()))
        if self._settings.watch:
            self._tasks.append(asyncio.create_task(self._follow_run()))

    async def stop(self) -> None:
        """End the watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._export_lock is not None:
            self._export_lock.close()

    async def reload(self) -> None:
        """Load the file now, after a fresh export where a run is served.

        Raises:
            QfleetError: what is there cannot be served; the old model goes on.
        """
        if self._settings.run is not None:
            await export_beside(self._settings.run, self._path)
        await self._load(self._path)

    async def _load(self, path: Path) -> None:
        async with self._lock:
            self._seen = signature(self._path)
            try:
                model = await asyncio.to_thread(self._open, path)
            except QfleetError as error:
                self._counters.reloaded(refused=True)
                if self.model is not None:
                    logger.error("new model refused, %s goes on: %s", self.model.policy.version, error)
                raise
            if self.model is not None and self.model.version == model.version:
                return
            if self.model is not None:
                logger.warning("model %s replaces %s", model.policy.version, self.model.policy.version)
                self._counters.reloaded()
            self.model = model
            self.on_model()

    def _open(self, path: Path) -> Model:
        """Read and check; in a thread, so that requests are answered meanwhile."""
        policy = OnnxPolicy.read(path)
        if self.model is not None:
            old, new = self.model.policy.spec, policy.spec
            for name in ("obs_shape", "obs_dtype", "num_actions"):
                if getattr(old, name) != getattr(new, name):
                    raise CheckpointError(
                        f"{self._path}: {name} {getattr(new, name)}, clients were promised {getattr(old, name)}; "
                        "start a server of its own for it"
                    )
        model = open_model(policy, self._settings.max_batch)
        if self._kept is not None and path != self._kept:
            self._keep(path, policy.digest)
        return model

    def _keep(self, path: Path, digest: str) -> None:
        """Put a copy aside for workers that are started again."""
        assert self._kept is not None
        part = self._kept.with_name(f"{self._kept.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # then they begin with what was kept before
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == digest:  # else it has changed since, and is looked at next
                part.write_bytes(content)
                part.replace(self._kept)

    async def _watch_file(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            found = signature(self._path)
            if found is None or found == self._seen:
                continue
            with contextlib.suppress(QfleetError):  # it was logged; the next change is the next try
                await self._load(self._path)

    async def _follow_run(self) -> None:
        run = self._settings.run
        assert run is not None
        description = Path(run) / "best" / "policy.json"
        exported: Signature | None = None
        failures = 0
        while True:
            found = signature(description)
            if found is not None and found != exported and self._may_export():
                try:
                    await export_beside(run, self._path)
                    exported, failures = found, 0
                except QfleetError as error:
                    # A policy that was replaced while it was read is read again; a bad one is left alone.
                    failures += 1
                    logger.error("export of %s failed (%d of %d): %s", run, failures, EXPORT_TRIES, error)
                    if failures == EXPORT_TRIES:
                        exported, failures = found, 0
            await asyncio.sleep(self._settings.poll_seconds)

    def _may_export(self) -> bool:
        """Whether this worker is the one that exports; the lock is kept for as long as it lives."""
        if self._export_lock is None:
            file = self._path.with_name(f".{self._path.name}.lock").open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
            self._export_lock = file
        return True


def signature(path: Path) -> Signature | None:
    """What changes when a file is replaced or written: time, size, inode; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


async def export_beside(run: str, out: Path) -> None:
    """`qfleet export` in a process of its own: it needs torch, which a server does not, and takes seconds.

    Raises:
        QfleetError: what the command said.
    """
    entry = "from qfleet.cli.main import main; main()"
    arguments = [sys.executable, "-c", entry, "export", run, "--out", str(out), "--quiet"]
    # Beside requests: it may have what they leave.
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=_be_nice,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), EXPORT_SECONDS)
    except TimeoutError:
        raise QfleetError(f"{run}: its export took longer than {EXPORT_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise QfleetError(lines[-1].removeprefix("error: "))


def _be_nice() -> None:
    os.nice(10)
