"""Many minutes of a served policy at 70% of its maximum, with hot reloads and bad clients among the good ones.

Good clients count every answer that is not 200, every connection lost and every version that is not one of the two
served; bad ones send half requests and wait, break off, send bodies too large and no HTTP at all. Passes when no good
client saw an error, no request went unanswered, all reloads were taken and the server's memory grew by less than 2%
from the end of the first tenth (caches are warm by then) to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import serving

GROWTH = 0.02
HEAD = b"POST /v1/act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--share", type=float, default=0.7, help="of the maximum that is measured first")
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = [serving.make_policy(folder / f"run{index}", "CartPole-v1", seed=1000 + index) for index in range(2)]
        served = folder / "served.onnx"
        shutil.copy(models[0], served)
        command = [sys.executable, "-u", "-c", serving.ENTRY, "serve", str(served), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                host, port = serving.read_address(server)
                result = soak(args, host, port, server.pid, models, served)
            finally:
                server.send_signal(signal.SIGTERM)
        result["exit_code"] = server.returncode
    result["passed"] = is_passed(result)
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))
    sys.exit(0 if result["passed"] else 1)


def soak(args: argparse.Namespace, host: str, port: int, pid: int, models: list[Path], served: Path) -> dict[str, Any]:
    """The load in a process of its own; reloads, bad clients and the memory here."""
    brief = argparse.Namespace(connections=args.connections, seconds=5.0)
    most = serving.load(host, port, brief)["requests_per_second"]
    seconds, rate = args.minutes * 60, args.share * most
    command = [sys.executable, str(serving.HERE / "serving_load.py"), "--host", host, "--port", str(port)]
    command += ["--connections", str(args.connections), "--seconds", str(seconds), "--rate", str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        beside = asyncio.run(disturb(args, host, port, pid, models, served, seconds))
        said, _ = load.communicate()
    return {"maximum": most, "asked": rate, "load": json.loads(said.splitlines()[-1]), **beside}


async def disturb(
    args: argparse.Namespace, host: str, port: int, pid: int, models: list[Path], served: Path, seconds: float
) -> dict[str, Any]:
    start = time.monotonic()
    bad = [asyncio.create_task(client(host, port)) for client in (slow, broken, oversized, garbage) for _ in range(2)]
    order = itertools.cycle(models[::-1])
    memory: list[tuple[float, int]] = []
    next_reload, num_reloads = seconds / (args.reloads + 1), 0
    while (elapsed := time.monotonic() - start) < seconds:
        memory.append((round(elapsed, 1), resident_bytes(pid)))
        if elapsed >= next_reload * (num_reloads + 1) and num_reloads < args.reloads:
            part = served.with_name("part")
            shutil.copy(next(order), part)
            part.replace(served)
            num_reloads += 1
        await asyncio.sleep(min(1.0, seconds / 100))
    for task in bad:
        task.cancel()
    finished = await asyncio.gather(*bad, return_exceptions=True)
    faults = [repr(found) for found in finished if isinstance(found, Exception)]
    warm = next(size for when, size in memory if when >= seconds / 10)
    return {
        "reloads_asked": num_reloads,
        "metrics": await metrics(host, port),
        "bad_clients": {"faults": faults, "asked": dict(COUNTS)},
        "rss_warm": warm,
        "rss_end": memory[-1][1],
        "rss_growth": memory[-1][1] / warm - 1.0,
        "rss": memory[:: max(1, len(memory) // 60)],
    }


COUNTS: dict[str, int] = {}


@contextlib.asynccontextmanager
async def connected(kind: str, host: str, port: int) -> Any:
    COUNTS[kind] = COUNTS.get(kind, 0) + 1
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def slow(host: str, port: int) -> None:
    """Half a request, and then nothing until the server hangs up."""
    while True:
        async with connected("slow", host, port) as (reader, writer):
            writer.write((HEAD % 1000 + b'{"obs": [')[: random.randrange(1, 90)])
            await asyncio.wait_for(reader.read(), 60)  # a hang of the server is a fault


async def broken(host: str, port: int) -> None:
    """Whole requests whose answers nobody takes, and half ones that break off."""
    while True:
        async with connected("broken", host, port) as (_, writer):
            body = b'{"obs": [0, 0, 0, 0]}'
            writer.write((HEAD % len(body) + body)[: random.choice([40, 100, 1000])])
            await asyncio.sleep(0.05)


async def oversized(host: str, port: int) -> None:
    """Bodies beyond the limit, announced or not."""
    while True:
        async with connected("oversized", host, port) as (reader, writer):
            if random.random() < 0.5:
                writer.write(HEAD % 10_000_000)
            else:
                writer.write((HEAD % 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            for _ in range(20):
                writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
                await writer.drain()
            await asyncio.wait_for(reader.read(1000), 60)
        await asyncio.sleep(0.2)


async def garbage(host: str, port: int) -> None:
    """No HTTP, and bodies that are no JSON."""
    while True:
        async with connected("garbage", host, port) as (reader, writer):
            body = random.randbytes(200)
            writer.write(random.choice([body, HEAD % len(body) + body]))
            await asyncio.wait_for(reader.read(100), 60)
        await asyncio.sleep(0.05)


async def metrics(host: str, port: int) -> dict[str, float]:
    import httpx

    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://{host}:{port}/metrics")).text
    wanted = ("qfleet_act_answers", "qfleet_reloads", "qfleet_failed")
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(wanted)]
    return {name: float(value) for name, value in lines}


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def is_passed(result: dict[str, Any]) -> bool:
    taken = result["metrics"].get('qfleet_reloads_total{result="taken"}', 0)
    return (
        result["load"]["errors"] == 0
        and result["load"]["unanswered"] == 0
        and not result["bad_clients"]["faults"]
        and taken == result["reloads_asked"]
        and result["metrics"]["qfleet_failed_inferences_total"] == 0
        and result["rss_growth"] < GROWTH
        and result["exit_code"] == 0
    )


if __name__ == "__main__":
    main()
