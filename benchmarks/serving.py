"""Requests per second and latency of a served policy, beside what else could serve it; everything in one run.

    qfleet          qfleet serve, one process, 32 keep-alive connections, one observation a request
    half load       the same at half the requests per second that it just answered
    ray serve       the same network behind Ray Serve's @serve.batch, in an environment of its own (--ray-python)
    nature cnn      images as raw bytes, beside onnxruntime alone at its best batch size
    in process      load_policy("policy.onnx").act(one observation)

The load comes from a second process (benchmarks/serving_load.py) that shares the machine's cores with the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ENTRY = "from qfleet.cli.main import main; main()"
IMAGES_A_REQUEST = (1, 8)
CARTPOLE = [0.01, -0.02, 0.03, 0.04]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--ray-python", help="a Python with ray[serve] and torch; without it Ray Serve is left out")
    parser.add_argument("--only", help="comma-separated: cartpole,ray,cnn,inprocess")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    wanted = set(args.only.split(",")) if args.only else {"cartpole", "ray", "cnn", "inprocess"}
    results: dict[str, Any] = {"machine": machine(), "connections": args.connections, "seconds": args.seconds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cartpole = make_policy(folder / "cartpole", "CartPole-v1")
        if "inprocess" in wanted:
            results["in_process_us"] = in_process(cartpole, args.repeats)
        if wanted & {"cartpole", "ray"}:
            results["cartpole"] = repeated(args, lambda: measure_cartpole(args, cartpole, "ray" in wanted))
        if "cnn" in wanted:
            cnn = make_policy(folder / "cnn", "images")
            results["cnn"] = repeated(args, lambda: measure_cnn(args, cnn))
    print_table(results)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


def repeated(args: argparse.Namespace, measure: Any) -> list[dict[str, Any]]:
    return [measure() for _ in range(args.repeats)]


def machine() -> dict[str, Any]:
    import onnxruntime
    import starlette
    import uvicorn

    versions = {module.__name__: module.__version__ for module in (onnxruntime, starlette, uvicorn, np)}
    return {"platform": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def make_policy(run_dir: Path, env: str, seed: int = 1000) -> Path:
    """An exported policy: CartPole's recipe, or a fresh Nature CNN over images of noise."""
    if env == "images":
        return make_cnn(run_dir)
    options = ["--run-dir", str(run_dir), "--quiet", "--max-env-steps", "3000", "--until-return", "never"]
    options += ["--seed", str(seed)]
    subprocess.run([sys.executable, "-c", ENTRY, "train", env, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-c", ENTRY, "export", str(run_dir), "--quiet"], check=True)
    return run_dir / "policy.onnx"


def make_cnn(run_dir: Path) -> Path:
    """The Nature CNN with its first weights: what it computes matters not, how long that takes does."""
    from qfleet.envs.make import probe_spec
    from qfleet.export.exporting import export_run
    from qfleet.policy import make_blueprint, save_policy
    from qfleet.run_config import build_config

    changes = {
        "env.id": "serving_images:Noise",
        "network.kind": "cnn",
        "replay.capacity": 1000,
        "replay.min_transitions": 100,
    }
    sys.path.insert(0, str(HERE))
    config = build_config({}, list(changes.items()))
    spec = probe_spec(config.env, None)
    snapshot = make_blueprint(config, spec).build_network(trainable=False).snapshot(1)
    (run_dir / "best").mkdir(parents=True)
    save_policy(run_dir / "best", config, spec, snapshot, {"num_env_steps": 0, "mean_return": 0.0, "episodes": 0})
    return export_run(run_dir).path


@contextlib.contextmanager
def served(model: Path, *options: str) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address."""
    command = [sys.executable, "-u", "-c", ENTRY, "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        host, port = read_address(server)
        try:
            yield host, port
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def read_address(server: subprocess.Popen[str]) -> tuple[str, int]:
    """Where `qfleet serve` listens, once it is ready."""
    assert server.stdout is not None
    match = re.search(r"//([\d.]+):(\d+)", server.stdout.readline())
    assert match is not None, "the server did not start"
    wait_until_ready(match[1], int(match[2]))
    return match[1], int(match[2])


def wait_until_ready(host: str, port: int, path: str = "/readyz", seconds: float = 60.0) -> None:
    import httpx

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://{host}:{port}{path}").status_code in (200, 405):
                return
        time.sleep(0.1)
    raise RuntimeError(f"{host}:{port} is not ready")


def load(host: str, port: int, args: argparse.Namespace, *options: str) -> dict[str, Any]:
    """Requests from a second process; what it measured."""
    command = [sys.executable, str(HERE / "serving_load.py"), "--host", host, "--port", str(port)]
    command += ["--connections", str(args.connections), "--seconds", str(args.seconds), *options]  # the last one counts
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_cartpole(args: argparse.Namespace, model: Path, with_ray: bool) -> dict[str, Any]:
    body = ["--json", json.dumps({"obs": CARTPOLE})]
    with served(model) as (host, port):
        load(host, port, args, *body, "--seconds", "1")
        full = load(host, port, args, *body)
        half = load(host, port, args, *body, "--rate", str(full["requests_per_second"] / 2))
    found = {"full": full, "half": half}
    if with_ray and args.ray_python:
        with ray_served(args.ray_python, model) as (host, port):
            load(host, port, args, *body, "--path", "/", "--seconds", "2")
            found["ray"] = load(host, port, args, *body, "--path", "/")
    return found


@contextlib.contextmanager
def ray_served(python: str, model: Path) -> Iterator[tuple[str, int]]:
    """Ray Serve with @serve.batch and the same network and onnxruntime settings."""
    command = [python, "-u", str(HERE / "peers" / "ray_serve_batch.py"), str(model)]
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        for line in server.stdout:
            match = re.match(r"ready (\d+)$", line)
            if match:
                break
        else:
            raise RuntimeError("Ray Serve did not start")
        try:
            yield "127.0.0.1", int(match[1])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def measure_cnn(args: argparse.Namespace, model: Path) -> dict[str, Any]:
    """The server, and onnxruntime alone with the same images: in one thread, in all, and in one process a core."""
    alone = onnxruntime_alone(model, args.seconds)
    best = max(alone.values())
    found: dict[str, Any] = {"alone": alone}
    with served(model) as (host, port):
        for images in IMAGES_A_REQUEST:
            load(host, port, args, "--image", str(images), "--seconds", "2")
            result = load(host, port, args, "--image", str(images))
            found[f"served_{images}"] = {**result, "share_of_best": result["requests_per_second"] * images / best}
    return found


def onnxruntime_alone(model: Path, seconds: float) -> dict[str, float]:
    """Images per second of the best batch sizes, by how the cores are used."""
    import threading

    from qfleet.onnx_policy import OnnxPolicy

    cores = os.cpu_count() or 1
    found: dict[str, float] = {}
    sizes = (8, 16, 32, 64)
    share = seconds / (2 * len(sizes))
    for threads in sorted({1, cores}):
        policy = OnnxPolicy.read(model, threads)
        for size in sizes:
            obs = np.random.default_rng(0).integers(0, 256, (size, *policy.spec.obs_shape), np.uint8)
            policy.infer(obs)
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < share:
                policy.infer(obs)
                count += size
            found[f"{threads} threads, batch {size}"] = count / (time.perf_counter() - start)
    policy = OnnxPolicy.read(model, 1)
    for size in sizes:
        obs = np.random.default_rng(0).integers(0, 256, (size, *policy.spec.obs_shape), np.uint8)
        counts = [0] * cores
        stop = time.perf_counter() + share

        def work(index: int, obs: np.ndarray = obs, stop: float = stop, counts: list[int] = counts) -> None:
            while time.perf_counter() < stop:
                policy.infer(obs)
                counts[index] += len(obs)

        workers = [threading.Thread(target=work, args=(index,)) for index in range(cores)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        found[f"{cores} at once, batch {size}"] = sum(counts) / (time.perf_counter() - start)
    return found


def in_process(model: Path, repeats: int) -> list[float]:
    """Microseconds of one action of one observation."""
    from qfleet import load_policy

    policy, obs = load_policy(model), np.array(CARTPOLE, np.float32)
    found = []
    for _ in range(max(repeats, 3)):
        start = time.perf_counter()
        for _ in range(20_000):
            policy.act(obs)
        found.append((time.perf_counter() - start) / 20_000 * 1e6)
    return found


def print_table(results: dict[str, Any]) -> None:
    print("| what | requests/s | p50 ms | p99 ms | errors |\n|---|---|---|---|---|")
    for key, name in (("full", "qfleet serve"), ("half", "qfleet serve, half load"), ("ray", "Ray Serve @serve.batch")):
        runs = [run[key] for run in results.get("cartpole", []) if key in run]
        if runs:
            print(row(f"CartPole, {name}", runs))
    cnn = results.get("cnn", [])
    if cnn:
        for images in IMAGES_A_REQUEST:
            runs = [run[f"served_{images}"] for run in cnn]
            shares = spread([run["share_of_best"] for run in runs], 2)
            print(row(f"Nature CNN, qfleet serve, {images} images a request, {shares} of onnxruntime alone", runs))
        best = [max(run["alone"].items(), key=lambda item: item[1]) for run in cnn]
        print(f"| Nature CNN, onnxruntime alone | {spread([value for _, value in best])} ({best[0][0]}) | | | |")
    if "ray" in (results.get("cartpole") or [{}])[0]:
        ratios = [run["full"]["requests_per_second"] / run["ray"]["requests_per_second"] for run in results["cartpole"]]
        print(f"CartPole, times Ray Serve's requests/s: {spread(ratios, 1)}")
    if "in_process_us" in results:
        print(f"load_policy on ONNX, microseconds of one action: {spread(results['in_process_us'], 1)}")


def row(name: str, runs: list[dict[str, Any]]) -> str:
    cells = [spread([run[key] for run in runs], digits) for key, digits in KEYS]
    return f"| {name} | {' | '.join(cells)} | {sum(run['errors'] for run in runs)} |"


KEYS = (("requests_per_second", 0), ("p50_ms", 1), ("p99_ms", 1))


def spread(values: list[float], digits: int = 0) -> str:
    return " / ".join(f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))


if __name__ == "__main__":
    main()
