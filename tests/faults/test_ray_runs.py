"""Whole runs on clusters of several nodes: left there and found again, with nodes that come and go, and refused."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

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

    def __init__(self, num_cpus: int, resources: tuple[str, ...], folder: Path, **variables: str) -> None:
        script = Path(__file__).with_name("cluster.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(num_cpus), *resources],
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


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    yield
    for process in STARTED:
        process.kill()
        process.communicate()
    STARTED.clear()


MakeNodes = Callable[..., Nodes]


@pytest.fixture
def make_nodes(tmp_path: Path) -> Iterator[MakeNodes]:
    made: list[Nodes] = []

    def make(num_cpus: int, *resources: str, **variables: str) -> Nodes:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        made.append(Nodes(num_cpus, resources, tmp_path / "elsewhere", **variables))
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
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": SOURCE, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


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


@pytest.mark.faults
def test_a_detached_run_takes_the_users_code_along_and_is_found_again(
    make_nodes: MakeNodes, user: Path, tmp_path: Path
) -> None:
    nodes = make_nodes(4)
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
    assert len(travelled) >= 2 * 4, "two workers' environments"
    assert {path.name[:8] for path in travelled} == {"_ray_pkg"}
    # It goes on, detached again, to its end.
    steps = json.loads((run_dir / "detached.json").read_text())["summary"]["num_env_steps"] + 100
    code, out, err = run(user, "train", "--resume", str(run_dir), "--max-env-steps", str(steps), "--detach")
    assert code == 0, err
    code, out, err = run(user, "attach", str(run_dir), "--json")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["stop_reason"]) == (0, "max_env_steps")
    assert summary == json.loads((run_dir / "summary.json").read_text())
    assert float(nodes.order("free")) == 4.0, "nothing of it is left on the cluster"


def coordinators() -> set[int]:
    """Processes of Ray's that hold a detached run."""
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if words.startswith(b"ray::Coordinator"):
            found.add(int(folder.name))
    return found


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_a_detached_run_whose_coordinator_is_killed_names_its_checkpoint(
    make_nodes: MakeNodes, user: Path, tmp_path: Path
) -> None:
    nodes, run_dir, others = make_nodes(4), tmp_path / "run", coordinators()
    words = train("CartPole-v1", nodes, strategy__num_workers=2)
    code, _, err = run(user, *words, "--max-env-steps", "1000000", "--run-dir", str(run_dir), "--detach")
    assert code == 0, err
    deadline = time.monotonic() + 60
    while not list((run_dir / "checkpoints").glob("manifest-*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    (pid,) = coordinators() - others
    watching = start(user, "attach", str(run_dir), "--quiet")
    os.kill(pid, signal.SIGKILL)
    told = ("its coordinator is gone without a word", f"qfleet train --resume {run_dir} --detach")
    assert_one_line(finish(watching), 1, *told)
    assert_one_line(run(user, "attach", str(run_dir), "--quiet"), 1, *told)
    code, _, err = run(user, "train", "--resume", str(run_dir), "--max-env-steps", "1000", "--detach")
    assert code == 0, err
    code, _, err = run(user, "attach", str(run_dir), "--quiet")
    assert code == 0, err
    assert float(nodes.order("free")) == 4.0, "its roles went with it"


@pytest.mark.faults
def test_a_run_that_cannot_be_placed_or_joined_says_so_in_one_line(
    make_nodes: MakeNodes, user: Path, tmp_path: Path
) -> None:
    nodes = make_nodes(3)
    run_dir = tmp_path / "run"
    small = ["--max-env-steps", "400", "--quiet", "--run-dir", str(run_dir)]
    words = train("CartPole-v1", nodes, strategy__num_workers=3, engine__placement_timeout=7)
    told = ("found no place in 7 s", "asks for 1 CPU", "3 CPU (0 free)")
    assert_one_line(run(user, *words, *small), 1, *told)
    left = tmp_path / "left"
    assert run(user, *words, "--quiet", "--run-dir", str(left), "--detach")[0] == 0
    assert_one_line(run(user, "attach", str(left), "--quiet"), 1, *told)
    run_dir = tmp_path / "another"
    small = [*small[:-1], str(run_dir)]
    refused = {"127.0.0.1:1": "nobody answers at 127.0.0.1:1", "nonsense": "write auto, ip:port or ray://ip:port"}
    for address, word in refused.items():
        wrong = run(user, *words, "--set", f"engine.address={address}", *small)
        assert_one_line(wrong, 2, address, word)
    no_cluster = run(user, "train", "CartPole-v1", "--engine", "ray", "--detach", "--quiet")
    assert_one_line(no_cluster, 2, "--set engine.address=auto")
    assert not run_dir.exists(), "free for the same command, corrected"
    code, _, err = run(user, *words, "--set", "strategy.num_workers=1", *small)
    assert code == 0, err
    assert json.loads((run_dir / "summary.json").read_text())["num_env_steps"] >= 400
    assert float(nodes.order("free")) == 3.0


@pytest.mark.faults
def test_a_wrong_token_is_told_as_one(make_nodes: MakeNodes, user: Path, tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    nodes = make_nodes(3, **token)
    words = [*train("CartPole-v1", nodes, strategy__num_workers=1), "--max-env-steps", "400", "--quiet"]
    right = run(user, *words, "--run-dir", str(tmp_path / "right"), **token)
    assert right[0] == 0, right[2]
    wrong = run(user, *words, "--run-dir", str(tmp_path / "wrong"), **{**token, "RAY_AUTH_TOKEN": "fedcba98" * 8})
    assert_one_line(wrong, 2, nodes.address, "RAY_AUTH_TOKEN")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.faults
@pytest.mark.parametrize("strategy", ["parameter_server", "all_reduce"])
def test_a_cluster_is_joined_through_its_client_server(
    make_nodes: MakeNodes, user: Path, tmp_path: Path, strategy: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = make_nodes(4, f"client={port}")
    nodes.address = f"ray://127.0.0.1:{port}"
    package, notes = user / "my_package", tmp_path / "notes"
    package.mkdir()
    (user / "my_envs.py").rename(package / "__init__.py")
    words = train("my_package:MyEnv", nodes, strategy, strategy__num_workers=2)
    words += ["--set", f'env.kwargs={{notes="{notes}"}}', "--set", f'engine.py_modules=["{package}"]']
    code, _, err = run(user, *words, "--max-env-steps", "600", "--quiet", "--run-dir", str(tmp_path / "run"))
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_env_steps"] >= 600
    assert summary["num_updates"] > 0
    homes = set(notes.read_text().split())
    assert any(not home.startswith(str(user)) for home in homes), "the package has travelled to the cluster"


@pytest.mark.faults
def test_workers_are_placed_by_the_gpus_that_they_ask_for(make_nodes: MakeNodes, user: Path, tmp_path: Path) -> None:
    nodes = make_nodes(6, "GPU=2")
    words = [
        *train("CartPole-v1", nodes, strategy__worker_gpus=1, device="cpu", engine__placement_timeout=7),
        "--quiet",
    ]
    words += ["--max-env-steps", "400", "--run-dir"]
    three = run(user, *words, str(tmp_path / "three"), "--workers", "3")
    assert_one_line(three, 1, "asks for 1 CPU, 1 GPU", "2 GPU (0 free)")
    code, _, err = run(user, *words, str(tmp_path / "two"), "--workers", "2")
    assert code == 0, err


WATCHED = """
import json, sys
from qfleet.engines.ray import Config
from qfleet.experiment import Experiment
from qfleet.strategies.base import CrewChanged, RoleRestarted, Update

words = json.loads(sys.argv[1])
experiment = Experiment.from_recipe("CartPole-v1", recipe="vector", run_dir=sys.argv[2], overrides=words)
homes, restarted, after = False, False, 0
for event in experiment.stream():
    engine = experiment.session.engine
    if not homes and isinstance(event, Update):
        homes = True
        print("homes", json.dumps({name: role.life.home.node_id for name, role in engine._roles.items()}), flush=True)
    if isinstance(event, RoleRestarted | CrewChanged):
        print(type(event).__name__, getattr(event, "why", None) or f"{event.role} {event.cause}", flush=True)
    after += restarted and isinstance(event, Update)
    restarted |= isinstance(event, RoleRestarted) and event.role == "server-0"
    if after == 20 or (isinstance(event, CrewChanged) and "joined" in event.why and event.num_workers == 4):
        experiment.interrupt()
print("end", experiment.session.stop_reason, json.dumps(experiment.session.control.tallies), flush=True)
"""


def watch(nodes: Nodes, run_dir: Path, strategy: str, **overrides: Any) -> subprocess.Popen[str]:
    values = {**SMALL, "engine": "ray", "engine.address": nodes.address, "strategy": strategy, **overrides}
    values |= {"stop.until_return": "never", "stop.max_env_steps": 10**8, "logging.tensorboard": False}
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, json.dumps(values), str(run_dir)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def read_until(process: subprocess.Popen[str], word: str) -> list[str]:
    """Lines up to the one that holds the word; whoever waits too long is killed, and says what was wrong."""
    assert process.stdout is not None
    killer = threading.Timer(120.0, process.kill)
    killer.start()
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.strip())
        if word in line:
            killer.cancel()
            return lines
    killer.cancel()
    assert process.stderr is not None
    raise AssertionError(f"no {word!r} in {lines}: {process.stderr.read()}")


@pytest.mark.faults
@pytest.mark.parametrize("strategy", ["parameter_server", "all_reduce"])
def test_workers_leave_with_their_node_and_come_back_with_another(
    make_nodes: MakeNodes, tmp_path: Path, strategy: str
) -> None:
    """Each of 4 workers takes a slot; the first node has 3, beside the CPUs of the evaluator and the server."""
    nodes = make_nodes(4, "slot=3")
    second = nodes.order("add", 0, "slot=1")
    wanted = {"strategy.num_workers": 4, "strategy.worker_cpus": 0, "strategy.worker_resources": {"slot": 1}}
    process = watch(nodes, tmp_path / "run", strategy, **wanted)
    homes = json.loads(read_until(process, "homes")[-1].removeprefix("homes "))
    on_second = [name for name, node in homes.items() if node == second]
    assert len(on_second) == 1
    assert on_second[0].startswith("worker-")
    nodes.order("remove", second)
    lines = read_until(process, f"{on_second[0]} left")
    third = nodes.order("add", 0, "slot=1")
    lines += read_until(process, "joined")
    end = read_until(process, "end ")[-1]
    assert end.startswith("end interrupted")
    tallies = json.loads(end.split(" ", 2)[2])
    # Ray may report the process before the node; then a life is given to the worker that the node takes too.
    assert sum(tallies.get(name, 0) for name in tallies if name.startswith(("workers_without", "restarts."))) in (1, 2)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert third != second


@pytest.mark.faults
def test_with_its_servers_node_a_run_goes_on_from_a_copy_or_names_resume(make_nodes: MakeNodes, tmp_path: Path) -> None:
    """66,000 parameters are 264 KB, so a published version is an object of the node that made it."""
    nodes = make_nodes(0, "slot=2")
    two = [nodes.order("add", 2) for _ in range(2)]
    wanted = {"strategy.num_workers": 2, "strategy.worker_cpus": 0, "strategy.worker_resources": {"slot": 1}}
    process = watch(nodes, tmp_path / "run", "parameter_server", **wanted, **{"network.hidden": [256, 256]})
    homes = json.loads(read_until(process, "homes")[-1].removeprefix("homes "))
    assert homes["server-0"] in two, "there is no CPU on the first node"
    assert homes["worker-0"] == homes["worker-1"] != homes["server-0"]
    nodes.order("remove", homes["server-0"])
    out, err = process.communicate(timeout=120)
    assert "RoleRestarted server-0 node lost" in out
    if process.returncode == 0:  # another node had a copy of the newest version: 20 updates more, then it was stopped
        assert "end interrupted" in out
    else:
        line = err.splitlines()[-1]
        assert "the newest parameters are gone with server-0's machine" in line
        assert "--resume" in line
