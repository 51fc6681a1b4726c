"""Checkpoints: files that roles wrote, made real by a JSON manifest that is committed last.

    checkpoints/manifest-00003.json          counters, states, and every file with its size and SHA-256
    checkpoints/<role>/state-00003.safetensors, replay segments shared between manifests

A manifest carries its own digest. A checkpoint counts only when the manifest and each of its files verify. Floor 6.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from qfleet.errors import CheckpointError
from qfleet.storage import read_verified, write_file
from qfleet.types import SavedFile
from qfleet.version import __version__

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint.

    Attributes:
        tag: its name; tags of a run sort by age.
        counters: num_env_steps, num_inserted, num_updates, num_samples; and frames_per_step.
        session, strategy, engine: the small states of these three.
        roles: each role's files.
        spec: the environment's facts; a run goes on only with the same observations and actions.
        config_sha256: digest of the settings that decide what is learned, seed included: whose run this is.
    """

    tag: str
    counters: dict[str, int]
    session: dict[str, object]
    strategy: dict[str, object]
    engine: dict[str, object]
    roles: dict[str, list[SavedFile]]
    spec: dict[str, object]
    config_sha256: str


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: the run's checkpoints folder.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def commit(self, manifest: Manifest) -> Path:
        """Write the manifest, then remove what is too old and the files that no manifest lists any more."""
        body = {"format": FORMAT, "qfleet_version": __version__, **asdict(manifest)}
        text = json.dumps({**body, "sha256": _digest(body)}, indent=1)
        name = f"manifest-{manifest.tag}.json"
        write_file(self.folder, name, text.encode())
        for path in self._paths():
            if path.name > name:  # damaged ones that a resumed run has passed over: they must not count as kept
                path.unlink()
        for path in self._paths()[: -self.keep]:
            path.unlink()
        self.collect_garbage()
        return self.folder / name

    def newest_whole(self, config_sha256: str | None = None) -> tuple[Manifest | None, list[str]]:
        """The newest checkpoint whose every byte verifies, and what was wrong with newer ones, a line each.

        Args:
            config_sha256: the run's own; a checkpoint of another run is refused. None takes any.

        Raises:
            CheckpointError: there are checkpoints, but none is whole; the message names each one's fault.
        """
        refused: list[str] = []
        for path in reversed(self._paths()):
            try:
                manifest = self.read(path)
                if config_sha256 not in (None, manifest.config_sha256):
                    raise CheckpointError(f"{path}: a checkpoint of another run (other settings or another seed)")
                for file in self._files_of(manifest):
                    read_verified(self.folder, file)
            except CheckpointError as error:
                refused.append(str(error))
                continue
            return manifest, refused
        if refused:
            raise CheckpointError("no whole checkpoint is left: " + "; ".join(refused))
        return None, []

    def read(self, path: Path) -> Manifest:
        """Parse and check one manifest.

        Raises:
            CheckpointError: naming the file and the fault.
        """
        try:
            body = json.loads(path.read_bytes())
            digest = body.pop("sha256")
            if body["format"] != FORMAT:
                raise CheckpointError(
                    f"{path}: format {body['format']}, this qfleet {__version__} reads format {FORMAT}"
                )
            if digest != _digest(body):
                raise CheckpointError(f"{path}: SHA-256 differs from its content: the manifest was altered")
            roles = {role: [SavedFile(**file) for file in files] for role, files in body["roles"].items()}
            return Manifest(
                tag=body["tag"],
                counters=body["counters"],
                session=body["session"],
                strategy=body["strategy"],
                engine=body["engine"],
                roles=roles,
                spec=body["spec"],
                config_sha256=body["config_sha256"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: not a manifest ({type(error).__name__}: {error}): truncated or foreign"
            ) from error

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("manifest-*.json"))

    def _files_of(self, manifest: Manifest) -> Iterator[SavedFile]:
        for files in manifest.roles.values():
            yield from files

    def collect_garbage(self) -> None:
        """Remove files that no manifest lists."""
        listed: set[Path] = set()
        for path in self._paths():
            try:
                listed.update(self.folder / file.path for file in self._files_of(self.read(path)))
            except CheckpointError:
                return  # An unreadable manifest may still be somebody's evidence: delete nothing.
        # A commit is the last of a drain, so nobody is writing: a .part file is what a killed process left.
        for path in [*self.folder.rglob("*.safetensors"), *self.folder.rglob(".*.part")]:
            if path not in listed:
                path.unlink()


def _digest(body: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
