"""Real servers on real sockets: TLS, SIGTERM, slow clients, several workers."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qfleet.client import PolicyClient, ServedPolicyError
from qfleet.errors import QfleetError, UsageError
from qfleet.serving.server import check_tls, open_socket
from qfleet.serving.settings import Settings

from .conftest import TOKEN

BODY = json.dumps({"obs": [0, 0, 0, 0]}).encode()
HEAD = b"POST /v1/act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def read_answer(connection: socket.socket) -> bytes:
    """Until the server hangs up, or an answer's body is in."""
    data = b""
    while b'"version"' not in data and (part := connection.recv(65536)):
        data += part
    return data


def test_sigterm_answers_what_is_under_way(start_server: Callable[..., Any], model: Path) -> None:
    server = start_server(model)
    with (
        socket.create_connection((server.host, server.port)) as busy,
        socket.create_connection((server.host, server.port)) as idle,
    ):
        # A request whose second half comes after SIGTERM.
        busy.sendall(HEAD % len(BODY) + BODY[:5])
        httpx.get(f"{server.url}/livez")
        server.process.terminate()
        while True:  # until the signal has arrived: the server sends its clients away
            answer = httpx.get(f"{server.url}/readyz")
            if answer.status_code == 503:
                break
        busy.sendall(BODY[5:])
        answer_bytes = read_answer(busy)
        assert answer_bytes.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer_bytes
        code, said = server.stop()
        assert (code, said) == (0, "")
        assert idle.recv(10) == b""


def make_certificate(cert: Path, key: Path, *options: str) -> None:
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", *subject, *(options or ["-nodes"])]
    try:
        subprocess.run([*openssl, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl")


def test_tls_with_a_certificate_and_a_token(start_server: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    options = ["--tls-cert", cert, "--tls-key", key, "--token-file", tmp_path / "token", "--host", "0.0.0.0"]
    server = start_server(model, *options)
    url = f"https://127.0.0.1:{server.port}"
    trusting = ssl.create_default_context(cafile=str(cert))
    with PolicyClient(url, TOKEN, verify=trusting) as client:
        assert client.act(np.zeros((2, 4))).shape == (2,)  # type: ignore[union-attr]
    wrong = PolicyClient(url, "another-wrong-token", verify=trusting)
    with wrong as client, pytest.raises(ServedPolicyError, match="401 authorization"):
        client.act(np.zeros(4))
    with PolicyClient(url, TOKEN) as client, pytest.raises(ServedPolicyError, match="certificate"):
        client.act(np.zeros(4))
    assert server.stop()[0] == 0


def test_no_part_of_an_answer_waits_for_an_acknowledgement() -> None:
    # Head and body are written apart: with Nagle's algorithm the body waits for the peer's delayed ACK, 40 ms.
    with (
        open_socket(Settings(model="policy.onnx", port=0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_bad_certificate_is_one_line(start_server: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(AssertionError, match=r"error: --tls-cert .*cert\.pem"):
        start_server(model, "--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "cert.pem")


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key, "-passout", "pass:secret")
    with pytest.raises(UsageError, match=r"key\.pem: .*; a certificate and its key without a password are needed"):
        check_tls(Settings(model="policy.onnx", tls_cert=str(cert), tls_key=str(key)))
    with pytest.raises(UsageError, match=r"^--tls-key absent: no such file"):
        check_tls(Settings(model="policy.onnx", tls_cert=str(cert), tls_key="absent"))


def test_a_port_that_is_taken_is_a_failure_and_no_address_a_wrong_request() -> None:
    with open_socket(Settings(model="policy.onnx", port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            QfleetError, match=rf":{port}: address already in use; choose another with --port$"
        ) as found:
            open_socket(Settings(model="policy.onnx", port=port))
    assert found.value.exit_code == 1
    with pytest.raises(UsageError, match="cannot listen on 192"):
        open_socket(Settings(model="policy.onnx", host="192.0.2.1"))


def test_workers_share_the_port_and_all_reload(start_server: Callable[..., Any], model: Path, other_onnx: Path) -> None:
    server = start_server(model, "--workers", 2)
    before = ask_until(server.url, lambda versions: len(versions) >= 1)
    part = model.with_name("part")
    part.write_bytes(other_onnx.read_bytes())
    part.replace(model)
    after = ask_until(server.url, lambda versions: not versions & before)
    assert len(after) == 1, "no worker answers with the old model any more"
    code, said = server.stop()
    assert code == 0
    assert said.count("replaces") == 2, "each worker said that it took the new model"


def ask_until(url: str, is_enough: Callable[[set[str]], bool]) -> set[str]:
    """Versions that 50 connections in a row were answered with, asked again until they satisfy `is_enough`."""
    for _ in range(200):
        versions = {httpx.get(f"{url}/readyz").json()["version"] for _ in range(50)}
        if is_enough(versions):
            return versions
    raise AssertionError(versions)


def test_endless_headers_are_cut_off(start_server: Callable[..., Any], model: Path) -> None:
    server = start_server(model)
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        connection.sendall(b"POST /v1/act HTTP/1.1\r\nX: ")
        with pytest.raises((ConnectionError, TimeoutError)):
            for _ in range(10_000):  # 320 MB: a server that reads on would take all of it
                connection.sendall(b"x" * 32768)
    assert httpx.post(f"{server.url}/v1/act", json={"obs": [0, 0, 0, 0]}).status_code == 200


@pytest.mark.slow
def test_slow_clients_are_hung_up_on(start_server: Callable[..., Any], model: Path) -> None:
    """A body that does not come is answered 408 after 10 s, headers that do not come end the connection after 15 s."""
    server = start_server(model)
    beginnings = [b"", b"POST /v1/act HT", HEAD % 10_000 + b"{"]
    connections = [socket.create_connection((server.host, server.port), timeout=40) for _ in beginnings]
    for connection, beginning in zip(connections, beginnings, strict=True):
        connection.sendall(beginning)
    answers = []
    for connection in connections:
        try:
            answers.append(connection.recv(65536)[:12])
        except ConnectionResetError:
            answers.append(b"")
    assert answers == [b"", b"", b"HTTP/1.1 408"]
    assert httpx.get(f"{server.url}/livez").status_code == 200


@pytest.mark.slow
def test_a_run_is_exported_and_followed(start_server: Callable[..., Any], saved_policy: Callable[..., Path]) -> None:
    server = start_server("--watch", saved_policy("CartPole-v1"))
    with PolicyClient(server.url, retries=100) as client:
        assert client.act(np.zeros(4)) in (0, 1)
    assert server.stop()[0] == 0


@pytest.mark.slow
@pytest.mark.ray
def test_the_same_application_on_ray(start_server: Callable[..., Any], model: Path) -> None:
    pytest.importorskip("fastapi", reason="ray[serve] is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start_server(model, "--engine", "ray", "--workers", 2, "--port", port)
    with PolicyClient(f"http://127.0.0.1:{port}") as client:
        assert client.act(np.zeros((3, 4))).shape == (3,)  # type: ignore[union-attr]
    assert server.stop()[0] == 0
