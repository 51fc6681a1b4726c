"""What `qfleet serve` was asked for, as the processes that serve get it."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from qfleet.errors import UsageError

MIN_TOKEN = 16
MIN_QUEUE = 1024  # observations


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve a policy.

    Attributes:
        model: the .onnx file that is served; changed, it is loaded anew.
        run: the run that it is exported from, None for a file of the user's own.
        watch: whether the run's new best policies are exported as they appear.
        host, port: where to listen; port 0 takes a free one.
        token: what clients must show, None for nobody.
        tls_cert, tls_key: PEM files, or None for plain HTTP.
        max_batch: observations in one inference, and in one request.
        max_wait_ms: how long a request waits for others while an inference runs; an idle server never waits.
        max_queue: observations that wait before others are told 429.
        timeout_seconds: for a whole request to arrive, and for it to be answered.
        poll_seconds: how often the file and the run are looked at.
        drain_seconds: after SIGTERM, how long requests are still taken while clients are told to leave.
        num_workers: processes on the port.
        num_threads: inferences at once in one process, where a network is too slow for the event loop.
        counters: the file in which they count together, None for one process.
    """

    model: str
    run: str | None = None
    watch: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    max_batch: int = 64
    max_wait_ms: float = 2.0
    max_queue: int = MIN_QUEUE
    timeout_seconds: float = 10.0
    poll_seconds: float = 0.5
    drain_seconds: float = 0.5
    num_workers: int = 1
    num_threads: int = 1
    counters: str | None = None

    def to_json(self) -> str:
        """For the environment of a worker process."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Settings:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name other than localhost is taken for reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_safe(settings: Settings, *, insecure: bool) -> None:
    """Refuse to open a port to others without a token.

    Raises:
        UsageError: naming what to give.
    """
    if settings.token is None and not insecure and not is_loopback(settings.host):
        raise UsageError(
            f"--host {settings.host}: others can reach this address, and anybody could use the policy; "
            "give --token-file FILE, or say --insecure"
        )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together")


def read_token(path: Path) -> str:
    """The token in a file, without the white space around it.

    Raises:
        UsageError: no such file, or a token that could be guessed or not be sent.
    """
    try:
        token = path.read_text("ascii").strip()
    except UnicodeDecodeError:
        raise UsageError(f"--token-file {path}: ASCII characters only; make one with: openssl rand -hex 32") from None
    except OSError as error:
        raise UsageError(f"--token-file {path}: {(error.strerror or type(error).__name__).lower()}") from None
    if len(token) < MIN_TOKEN or not token.isprintable() or " " in token:
        raise UsageError(
            f"--token-file {path}: one word of at least {MIN_TOKEN} characters; make one with: openssl rand -hex 32"
        )
    return token
