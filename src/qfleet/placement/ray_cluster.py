"""The Ray that roles are placed on: started here, joined by its address, or found running in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Literal, Protocol

import ray
import ray.util.client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qfleet.errors import UsageError, in_one_line
from qfleet.version import __version__

ANY_NUMBER = 1 << 30
# A Ray of one machine with this resource is not asked for CPUs: the operating system shares them out.
SHARES_CPUS = "shares_cpus"
_GIB = 1 << 30
_MIN_STORE = 80 << 20  # Ray starts with no less
_GRACE_SECONDS = 60.0
_CONNECT_SECONDS = 5.0


class Request(Protocol):
    """What a role asks for; see Placement in engines/base.py."""

    @property
    def num_cpus(self) -> float: ...
    @property
    def num_gpus(self) -> float: ...
    @property
    def custom(self) -> Mapping[str, float]: ...
    @property
    def near(self) -> Literal["pack", "spread"]: ...


class Cluster:
    """A connection to Ray, and what it has room for.

    Args:
        address: None starts a Ray of this machine; "auto", "ip:port" or "ray://ip:port" joins one. A Ray that this
            process is connected to already is used as it is, and left running.
        num_cpus: CPUs that a Ray started here has to give. None: roles there share the machine's as they do without
            Ray, and none is refused for want of a CPU.
        object_store_memory: bytes, for a Ray started here; None takes at most 1 GiB.
        runtime_env: Ray's description of the code that travels with the run.
        namespace: Ray's, None for one of its own.

    Raises:
        UsageError: there is no cluster at this address, or it is of another Python, Ray, torch or qfleet.
    """

    def __init__(
        self,
        address: str | None,
        num_cpus: int | None = None,
        object_store_memory: int | None = None,
        runtime_env: dict[str, object] | None = None,
        namespace: str | None = None,
    ) -> None:
        self._folder: str | None = None
        self._pack_node: str | None = None
        self.is_ours = not ray.is_initialized()
        if self.is_ours:
            self._connect(address, num_cpus, object_store_memory, runtime_env, namespace)
        self._counts_cpus = SHARES_CPUS not in ray.cluster_resources()

    def _connect(
        self,
        address: str | None,
        num_cpus: int | None,
        object_store_memory: int | None,
        runtime_env: dict[str, object] | None,
        namespace: str | None,
    ) -> None:
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # a lost payload that nobody asks for is no error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        common: dict[str, object] = {
            "runtime_env": runtime_env,
            "namespace": namespace,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        }
        _quieten()
        if address is None:
            self._start(num_cpus, object_store_memory, common)
        else:
            self._join(address, common)

    def _start(self, num_cpus: int | None, object_store_memory: int | None, common: dict[str, object]) -> None:
        # With no mode given, ray.init of a local Ray makes a token and asks every connection for it.
        os.environ.pop("RAY_AUTH_MODE", None)
        self._folder = tempfile.mkdtemp(prefix="qfleet-ray-")
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=num_cpus,
            resources={SHARES_CPUS: 1} if num_cpus is None else {},
            object_store_memory=object_store_memory or default_store_memory(),
            _temp_dir=self._folder,
            **common,
        )

    def _join(self, address: str, common: dict[str, object]) -> None:
        check_answers(address)
        with tempfile.TemporaryFile() as said:
            try:
                with _errors_go_to(said):
                    ray.init(address=address, **common)
            except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
                line = in_one_line(error)
                said.seek(0)
                if any(word in said.read() + line.encode() for word in (b"Unauthenticated", b"AuthToken")):
                    line = (
                        "this cluster takes no connection without its token; put it into RAY_AUTH_TOKEN, or its file's "
                        "path into RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token"
                    )
                raise UsageError(f"engine.address = {address!r}: {line}") from error
        try:
            check_versions(address, versions(), self._versions_of_nodes())
        except BaseException:
            ray.shutdown()
            raise

    def _versions_of_nodes(self) -> dict[str, dict[str, str]]:
        """What each node runs, by its address."""
        ask = ray.remote(num_cpus=0, max_retries=0)(versions)
        asked = {
            str(node["NodeManagerAddress"]): ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in ray.nodes()
            if node["Alive"]
        }
        try:
            return dict(zip(asked, ray.get(list(asked.values()), timeout=_GRACE_SECONDS), strict=True))
        except ray.exceptions.RayError as error:
            line = str(error).strip().splitlines()[-1]
            raise UsageError(
                f"the cluster's nodes cannot say what they run: {line}; is qfleet installed there?"
            ) from error

    def options(self, request: Request) -> dict[str, object]:
        """Ray's actor options for a role: what it takes of a machine, and of which one."""
        return {
            "num_cpus": request.num_cpus if self._counts_cpus else 0,
            "num_gpus": request.num_gpus,
            "resources": dict(request.custom),
            "scheduling_strategy": "SPREAD" if request.near == "spread" else self._beside_the_packed(request),
            "max_restarts": 0,
            "max_task_retries": 0,
        }

    def _beside_the_packed(self, request: Request) -> object:
        """On the node of the first packed role; that one takes this process's node if it fits, else the emptiest."""
        nodes = {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}
        if self._pack_node not in nodes:
            free = self._free()
            fitting = [node for node, resources in free.items() if node in nodes and self._fits(request, resources)]
            here = ray.get_runtime_context().get_node_id()
            fitting.sort(key=lambda node: (node != here, -free[node].get("CPU", 0.0)))
            self._pack_node = fitting[0] if fitting else None
        if self._pack_node is None:
            return "DEFAULT"
        return NodeAffinitySchedulingStrategy(self._pack_node, soft=True)

    def beside_head(self) -> object:
        """On the head node if it lives, for what must not leave with a node that is added for a while."""
        heads = [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" in node["Resources"]]
        return NodeAffinitySchedulingStrategy(heads[0]["NodeID"], soft=True) if heads else "DEFAULT"

    def room_for(self, request: Request) -> int:
        """How many more such roles fit, each whole on one node."""
        wanted = self._wanted(request)
        if not wanted:
            return ANY_NUMBER
        return sum(
            min(int((resources.get(name, 0.0) + 1e-9) / amount) for name, amount in wanted.items())
            for resources in self._free().values()
        )

    def why_no_room(self, request: Request) -> str:
        """One line: what was asked, and what there is."""
        asked = ", ".join(f"{amount:g} {name}" for name, amount in self._wanted(request).items()) or "a process"
        has, free = ray.cluster_resources(), ray.available_resources()
        names = [name for name in sorted({*has, *self._wanted(request)}) if _is_told(name)]
        there = ", ".join(f"{has.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in names)
        return f"asks for {asked}, and the cluster has {there}"

    def _wanted(self, request: Request) -> dict[str, float]:
        amounts = {"CPU": request.num_cpus if self._counts_cpus else 0.0, "GPU": request.num_gpus, **request.custom}
        return {name: amount for name, amount in amounts.items() if amount > 0}

    def _fits(self, request: Request, resources: Mapping[str, float]) -> bool:
        return all(resources.get(name, 0.0) + 1e-9 >= amount for name, amount in self._wanted(request).items())

    def _free(self) -> dict[str, dict[str, float]]:
        """What each node has left, by node id. Through ray:// only a process of the cluster knows."""
        if not ray.util.client.ray.is_connected():
            return _free_by_node()
        asked = ray.remote(num_cpus=0, max_retries=0)(_free_by_node).remote()
        free: dict[str, dict[str, float]] = ray.get(asked, timeout=_GRACE_SECONDS)
        return free

    def close(self) -> None:
        """Leave; a Ray that was started here ends, with its processes, its shared memory and its folder."""
        if not self.is_ours:
            return
        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _free_by_node() -> dict[str, dict[str, float]]:
    free: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()
    return free


def versions() -> dict[str, str]:
    """What must be the same everywhere for pickled roles and networks to be; torch without its "+cpu"."""
    from importlib.metadata import version

    return {
        "Python": platform.python_version(),
        "torch": version("torch").partition("+")[0],
        "qfleet": __version__,
    }


def check_versions(address: str, here: Mapping[str, str], nodes: Mapping[str, Mapping[str, str]]) -> None:
    """Compare.

    Raises:
        UsageError: a node differs; the line names what, both versions and the node.
    """
    for node, there in nodes.items():
        for name, version in here.items():
            if there.get(name) != version:
                raise UsageError(
                    f"engine.address = {address!r}: node {node} runs {name} {there.get(name)}, this process {version}; "
                    f"install the same version"
                )


def check_answers(address: str) -> None:
    """Look whether anybody listens there; Ray itself would try for minutes, and print what it tries.

    Raises:
        UsageError: nobody does, "auto" finds no cluster, or it is no address.
    """
    found = address.removeprefix("ray://")
    if address == "auto":
        try:
            found = ray._private.services.canonicalize_bootstrap_address("auto") or ""
        except ConnectionError as error:
            raise UsageError("engine.address = 'auto': no Ray is running on this machine; give ip:port") from error
    host, _, port = found.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"engine.address = {address!r}: no address; write auto, ip:port or ray://ip:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"engine.address = {address!r}: nobody answers at {found} ({error}); is the cluster up, and is this its "
            "address as this machine sees it?"
        ) from error


@contextlib.contextmanager
def _errors_go_to(file: IO[bytes]) -> Iterator[None]:
    """Ray's native part writes each of its attempts to connect to standard error."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def default_store_memory() -> int:
    """Bytes of shared memory for the object store of a local Ray: half of what /dev/shm has free, at most 1 GiB."""
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else _GIB
    return max(_MIN_STORE, min(_GIB, free // 2))


def _is_told(name: str) -> bool:
    return not name.startswith(("node:", "accelerator_type:")) and "memory" not in name and name != SHARES_CPUS


def _quieten() -> None:
    """Ray prints a raylet's notices to stdout, which belongs to the run; deaths are told by RoleDied."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, ignore_prefix=True: None
