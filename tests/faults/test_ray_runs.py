"""Whole runs on clusters of several nodes: left there and found again, with nodes that come and go, and refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

ENTRY = "from qfleet.cli.main import main; main()"
SOURCE = str(Path(__file__).parents[2] / "src")
ENVS = """
import gymnasium as gym, numpy as np

class MyEnv(gym.Env):
    observation_space = gym.spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, notes):
        with open(notes, "a") as file:
            file.write(f"{__file__}\\n")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = 0
        return np.eye(4, dtype=np.float32)[0], {}

    def step(self, action):
        self.cell += 1
        return np.eye(4, dtype=np.float32)[self.cell % 4], float(action == self.cell % 2), self.cell >= 10, False, {}
"""
NETS = """
import torch

class MyNet(torch.nn.Sequential):
    def __init__(self, obs_shape):
        super().__init__(torch.nn.Linear(obs_shape[0], 16), torch.nn.ReLU())
"""
SMALL = {
    "env.num_envs": 4,
    "algo.batch_size": 16,
    "network.hidden": [16],
    "replay.capacity": 2000,
    "replay.min_transitions": 40,
    "replay.samples_per_insert": 4.0,
    "evaluation.every_env_steps": 1_000_000,
    "evaluation.episodes": 4,
    "evaluation.final_episodes": 4,
    "checkpoint.every_env_steps": 400,
    "logging.every_env_steps": 100,
    "logging.tensorboard": "false",
}


class Nodes:
    """Orders to cluster.py."""

    def __init__(self, num_cpus: int, folder: Path, **variables: str) -> None:
        script = Path(__file__).with_name("cluster.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(num_cpus)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": SOURCE, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._answer()

    def order(self, *words: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


MakeNodes = Callable[..., Nodes]


@pytest.fixture
def make_nodes(tmp_path: Path) -> Iterator[MakeNodes]:
    made: list[Nodes] = []

    def make(num_cpus: int, **variables: str) -> Nodes:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        made.append(Nodes(num_cpus, tmp_path / "elsewhere", **variables))
        return made[-1]

    yield make
    for nodes in made:
        nodes.close()


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder with the user's code, which the cluster's processes cannot import."""
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "my_envs.py").write_text(ENVS)
    (folder / "my_nets.py").write_text(NETS)
    return folder


def settings(nodes: Nodes, overrides: dict[str, Any]) -> list[str]:
    values = {"engine.address": nodes.address, **SMALL, **overrides}
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def train(env: str, nodes: Nodes, strategy: str = "parameter_server", **overrides: Any) -> list[str]:
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    return [
        *("train", env, "--recipe", "vector", "--strategy", strategy, "--engine", "ray", "--until-return", "never"),
        *settings(nodes, changes),
    ]


def start(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENTRY, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": SOURCE, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 150.0) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def run(folder: Path, *words: str, **variables: str) -> tuple[int, str, str]:
    return finish(start(folder, *words, **variables))


def assert_one_line(result: tuple[int, str, str], code: int, *words: str) -> None:
    """Exit code, and one line of error that holds these words."""
    assert result[0] == code, result
    lines = result[2].splitlines()
    assert len(lines) == 1, result[2]
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def test_a_detached_run_takes_the_users_code_along_and_is_found_again(
    make_nodes: MakeNodes, user: Path, tmp_path: Path
) -> None:
    nodes = make_nodes(3)
    notes, run_dir = tmp_path / "notes", tmp_path / "run"
    words = train(
        "my_envs:MyEnv",
        nodes,
        engine__working_dir=".",
        network__kind="my_nets:MyNet",
        env__kwargs=f'{{notes="{notes}"}}',
        strategy__num_workers=2,
    )
    code, out, err = run(user, *words, "--run-dir", str(run_dir), "--detach")
    assert code == 0, err
    assert f"qfleet attach {run_dir}" in out
    watching = start(user, "attach", str(run_dir))
    assert watching.stderr is not None
    first = next(line for line in watching.stderr if "env steps" in line)
    assert re.match(r"[\d,]+ of [\d,]+ env steps", first), "its progress is shown"
    watching.send_signal(signal.SIGINT)
    code, _, err = finish(watching)
    assert (code, err.splitlines()[-1].startswith("detached: the run goes on")) == (130, True), err
    code, out, err = run(user, "attach", str(run_dir), "--stop")
    assert code == 0, err
    assert f"continue with: qfleet train --resume {run_dir}" in err
    assert list((run_dir / "checkpoints").glob("manifest-*.json"))
    assert run(user, "attach", str(run_dir))[0] == 130, "somebody has stopped it, it did not end"
    makers = [Path(line).parent for line in notes.read_text().splitlines()]
    travelled = [path for path in makers if path != user]
    assert len(travelled) >= 3 * 4, "two workers' and the evaluator's environments"
    assert {path.name[:8] for path in travelled} == {"_ray_pkg"}
    # It goes on, detached again, to its end.
    steps = json.loads((run_dir / "detached.json").read_text())["summary"]["num_env_steps"] + 100
    code, out, err = run(user, "train", "--resume", str(run_dir), "--max-env-steps", str(steps), "--detach")
    assert code == 0, err
    code, out, err = run(user, "attach", str(run_dir), "--json")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["stop_reason"]) == (0, "max_env_steps")
    assert summary == json.loads((run_dir / "summary.json").read_text())
    assert float(nodes.order("free")) == 3.0, "nothing of it is left on the cluster"

