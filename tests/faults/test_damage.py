"""A damaged checkpoint is refused by name and the one before it is used; with none left the run says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.checkpoint import CheckpointStore
from qfleet.errors import CheckpointError
from qfleet.experiment import Experiment
from qfleet.policy import load_policy
from qfleet.session import CheckpointSaved

MakeExperiment = Callable[..., Experiment]


@pytest.fixture(scope="module")
def intact(saving: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run dropped after its third checkpoint, and the parameters that it leads to."""
    run_dir = tmp_path_factory.mktemp("intact") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qfleet.experiment.draw_learning_curve", lambda *args: None)
        whole = Experiment.from_recipe(
            "CartPole-v1", recipe="vector", run_dir=run_dir.with_name("whole"), overrides=saving
        ).run()
    events = Experiment.from_recipe("CartPole-v1", recipe="vector", run_dir=run_dir, overrides=saving).stream()
    saved = 0
    while saved < 3:
        saved += isinstance(next(events), CheckpointSaved)
    events.close()
    return run_dir, str(whole["parameters_sha256"])


@pytest.fixture
def run_dir(intact: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact[0], tmp_path / "run"))


def files_of(run_dir: Path, newest: int = 1) -> dict[str, Path]:
    """The files of the newest checkpoint (or one before it), by kind; of its chunks of rows the youngest."""
    store = CheckpointStore(run_dir / "checkpoints", 9)
    path = store._paths()[-newest]
    found = {"manifest": path}
    for file in store._files_of(store.read(path)):
        name = Path(file.path).name
        kind = "replay-state" if name.startswith("replay-state") else "rows" if name.startswith("replay") else "state"
        found[kind] = store.folder / file.path
    return found


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0b100
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def replace_by_foreign(path: Path) -> None:
    content = json.dumps({"decoy": 99}).encode() if path.suffix == ".json" else b"\x89PNG decoy"
    path.write_bytes(content)


KINDS = ["manifest", "state", "rows", "replay-state"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [truncate, empty, flip, remove, replace_by_foreign])
def test_the_older_checkpoint_is_used_and_the_newer_named(
    run_dir: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    victim = files_of(run_dir)[kind]
    damage(victim)
    resumed = Experiment.resume(run_dir)
    if (kind, damage) == ("manifest", remove):
        assert resumed.warnings == []  # what is not there is not damaged
    else:
        assert len(resumed.warnings) == 1
        assert str(victim) in resumed.warnings[0]
        assert "\n" not in resumed.warnings[0]
    first = next(event for event in resumed.stream() if isinstance(event, CheckpointSaved))
    # The second checkpoint is the one used, so the next one is the third again.
    assert first.manifest.name == "manifest-00002.json"


def test_a_run_that_fell_back_ends_where_it_would_have(run_dir: Path, intact: tuple[Path, str]) -> None:
    flip(files_of(run_dir)["state"])
    assert Experiment.resume(run_dir).run()["parameters_sha256"] == intact[1]


@pytest.mark.parametrize("kind", KINDS)
def test_with_no_whole_checkpoint_left_each_is_named(run_dir: Path, kind: str) -> None:
    victims = [files_of(run_dir, newest)[kind] for newest in (1, 2)]
    for victim in victims:
        flip(victim)  # the older chunk of rows is part of the newer checkpoint too
    with pytest.raises(CheckpointError, match="no whole checkpoint is left") as caught:
        Experiment.resume(run_dir)
    # Both checkpoints are refused, each by the first of its files that is damaged.
    assert str(victims[1]) in str(caught.value)
    assert kind == "rows" or str(victims[0]) in str(caught.value)
    assert str(caught.value).count("SHA-256") + str(caught.value).count("not a manifest") == 2
    assert "\n" not in str(caught.value)


def test_a_manifest_of_another_version_is_refused(run_dir: Path) -> None:
    path = files_of(run_dir)["manifest"]
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"format": 99}))
    assert f"{path}: format 99" in Experiment.resume(run_dir).warnings[0]


def test_a_manifest_whose_counters_were_changed_is_refused(run_dir: Path) -> None:
    path = files_of(run_dir)["manifest"]
    body = json.loads(path.read_text())
    body["counters"]["num_env_steps"] += 1
    path.write_text(json.dumps(body))
    assert f"{path}: SHA-256 differs" in Experiment.resume(run_dir).warnings[0]


def transplant(donor: Path, run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    shutil.copytree(donor / "checkpoints", run_dir / "checkpoints")


def test_checkpoints_of_another_environment_are_refused(run_dir: Path, experiment: MakeExperiment) -> None:
    experiment("qfleet/Identity-v0", run_dir="donor").run()
    transplant(run_dir.with_name("donor"), run_dir)
    with pytest.raises(CheckpointError, match="checkpoint of another run") as caught:
        Experiment.resume(run_dir).run()
    assert str(run_dir) in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"network.hidden": [8]}, {"replay.sampler": "prioritized"}, {"seed": 99}, {"algo.learning_rate": 0.5}]
)
def test_checkpoints_of_other_settings_are_refused(
    run_dir: Path, experiment: MakeExperiment, changes: dict[str, Any]
) -> None:
    experiment("CartPole-v1", changes, run_dir="donor").run()
    transplant(run_dir.with_name("donor"), run_dir)
    with pytest.raises(CheckpointError, match="checkpoint of another run") as caught:
        Experiment.resume(run_dir, {"stop.max_env_steps": 1000}).run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [truncate, flip, remove, replace_by_foreign])
def test_a_damaged_policy_is_refused_by_name(
    experiment: MakeExperiment, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    experiment("qfleet/Identity-v0").run()
    best = tmp_path / "run" / "best"
    weights = next(best.glob("policy-*.safetensors"))
    content = weights.read_bytes()
    damage(weights)
    with pytest.raises(CheckpointError, match=r"policy-\d+.safetensors"):
        load_policy(tmp_path / "run")
    weights.write_bytes(content)
    damage(best / "policy.json")
    if damage is flip:  # one letter of JSON may still be JSON; then something else must not fit
        return
    with pytest.raises(CheckpointError, match=r"policy.json"):
        load_policy(tmp_path / "run")
