"""`qfleet export`: what it prints and writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxscript")

Cli = Callable[..., Any]


def test_export_prints_the_agreement_and_writes_beside_the_run(
    cli: Cli, saved_policy: Callable[..., Path], last_json: Callable[..., dict[str, Any]]
) -> None:
    run_dir = saved_policy("CartPole-v1")
    result = cli("export", run_dir, "--format", "safetensors")
    assert result.exit_code == 0, result.stderr
    assert "agreement on 1,000 observations: q_values within" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"{run_dir}/policy.safetensors: dqn policy for CartPole-v1")
    told = last_json(cli("export", run_dir, "--format", "safetensors", "--json", "--out", run_dir / "b.safetensors"))
    assert (run_dir / "b.safetensors").stat().st_size == told["num_bytes"]
    assert told["agreement"]["num_different"] == 0


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("export", "nowhere"), ["nowhere", "no such directory"]),
        (("export", ".", "--format", "pickle"), ["no run here"]),
        (("export", "short"), ["short: a file, not a run directory", "only .onnx files are read back"]),
        (("serve", "short"), ["short: a file, not a run directory"]),
        (("evaluate", "short"), ["short: a file, not a run directory"]),
        (("serve",), ["nothing to serve", "--watch RUN"]),
        (("serve", "absent.onnx"), ["absent.onnx", "no such file"]),
        (("serve", "absent.onnx", "--host", "0.0.0.0"), ["--host 0.0.0.0", "--token-file", "--insecure"]),
        (("serve", "absent.onnx", "--host", "example.org"), ["--host example.org", "--token-file"]),
        (("serve", "absent.onnx", "--token-file", "absent"), ["--token-file absent", "no such file"]),
        (("serve", "absent.onnx", "--token-file", "short"), ["at least 16 characters", "openssl rand -hex 32"]),
        (("serve", "absent.onnx", "--tls-cert", "cert.pem"), ["--tls-cert and --tls-key belong together"]),
        (("serve", "absent.onnx", "--engine", "decoy"), ["--engine decoy", "uvicorn, ray"]),
    ],
)
def test_wrong_requests(cli: Cli, tmp_path: Path, args: tuple[str, ...], parts: list[str]) -> None:
    (tmp_path / "short").write_text("abc\n")
    result = cli(*args)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr


def test_what_cannot_be_written_names_the_option(cli: Cli, saved_policy: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = cli("export", saved_policy("CartPole-v1"), "--format", "safetensors", "--out", "file/p.safetensors")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot write file/p.safetensors: ")
    assert result.stderr.endswith("choose another --out\n")


def test_the_largest_request_fits_into_the_queue(
    cli: Cli, saved_policy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qfleet.cli import serve

    asked: list[Any] = []
    monkeypatch.setattr(serve, "run_server", lambda settings, *rest: asked.append(settings))
    monkeypatch.setattr(serve, "prepare_model", lambda settings, *rest: settings)
    for max_batch in (64, 4096):
        assert cli("serve", "any.onnx", "--max-batch", max_batch).exit_code == 0
    assert [settings.max_queue for settings in asked] == [1024, 4 * 4096]
