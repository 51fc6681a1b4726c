"""New models while the server runs: taken whole and checked, or refused while the old one goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from qfleet.onnx_policy import OnnxPolicy
from qfleet.serving.counters import Counters

from .conftest import TOKEN

MakeClient = Callable[..., TestClient]
ASK = {"headers": {"authorization": f"Bearer {TOKEN}"}}


def replace(model: Path, content: bytes) -> None:
    """As `qfleet export` writes: under another name, then renamed."""
    part = model.with_name("part")
    part.write_bytes(content)
    part.replace(model)


def version(client: TestClient) -> str:
    return str(client.get("/readyz").json()["version"])


def until(client: TestClient, line: str) -> None:
    """Ask until the metrics say it; each request lets the server look at its file."""
    for _ in range(2000):
        if line in client.get("/metrics").text.splitlines():
            return
    raise AssertionError(f"never: {line}")


def test_a_changed_file_is_loaded_and_answers_say_so(client: TestClient, model: Path, other_onnx: Path) -> None:
    before = version(client)
    replace(model, other_onnx.read_bytes())
    until(client, 'qfleet_reloads_total{result="taken"} 1.0')
    expected = OnnxPolicy.read(other_onnx)
    answer = client.post("/v1/act", json={"obs": [0.1, 0.2, 0.3, 0.4], "q_values": True}).json()
    assert answer["version"] == expected.version != before
    assert answer["q_values"] == pytest.approx(expected.q_values([0.1, 0.2, 0.3, 0.4]).tolist())  # type: ignore[arg-type]


def test_a_bad_file_is_refused_and_the_old_model_goes_on(client: TestClient, model: Path, other_onnx: Path) -> None:
    before = version(client)
    replace(model, other_onnx.read_bytes()[:-1000])
    until(client, 'qfleet_reloads_total{result="refused"} 1.0')
    assert client.post("/v1/act", json={"obs": [0, 0, 0, 0]}).json()["version"] == before
    replace(model, other_onnx.read_bytes())
    until(client, 'qfleet_reloads_total{result="taken"} 1.0')
    assert version(client) != before


def test_a_worker_that_is_started_again_takes_what_the_others_have(
    make_client: MakeClient, model: Path, other_onnx: Path, tmp_path: Path
) -> None:
    Counters.make_file(tmp_path / "counters", 1)
    before = version(make_client(counters=str(tmp_path / "counters"), poll_seconds=3600.0))
    model.write_bytes(b"no model")
    again = make_client(counters=str(tmp_path / "counters"))
    assert version(again) == before
    until(again, 'qfleet_reloads_total{result="refused"} 1.0')
    replace(model, other_onnx.read_bytes())
    until(again, 'qfleet_reloads_total{result="taken"} 1.0')
    last = make_client(counters=str(tmp_path / "counters"), poll_seconds=3600.0)
    assert version(last) == version(again) != before


def test_reload_on_request(make_client: MakeClient, model: Path, other_onnx: Path) -> None:
    client = make_client(token=TOKEN, poll_seconds=3600.0)
    before = version(client)
    assert client.post("/v1/reload", **ASK).json() == {"version": before, "changed": False}
    shutil.copy(other_onnx, model)
    after = client.post("/v1/reload", **ASK).json()
    assert after == {"version": OnnxPolicy.read(other_onnx).version, "changed": True}
    model.unlink()
    refused = client.post("/v1/reload", **ASK)
    assert refused.status_code == 409
    assert refused.json()["version"] == after["version"] == version(client)
    assert "no such file" in refused.json()["error"]["message"]


def test_what_clients_were_promised_stays(
    make_client: MakeClient, model: Path, saved_policy: Callable[..., Path]
) -> None:
    from qfleet.export.exporting import export_run

    client = make_client(token=TOKEN, poll_seconds=3600.0)
    shutil.copy(export_run(saved_policy("Acrobot-v1")).path, model)
    refused = client.post("/v1/reload", **ASK)
    assert refused.status_code == 409
    assert "obs_shape (6,), clients were promised (4,)" in refused.json()["error"]["message"]


def test_altered_weights_are_refused(make_client: MakeClient, model: Path) -> None:
    import onnx

    client = make_client(token=TOKEN, poll_seconds=3600.0)
    altered = onnx.load(model)
    for weight in altered.graph.initializer:
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(altered, model)
    refused = client.post("/v1/reload", **ASK)
    assert refused.status_code == 409
    assert "golden observations" in refused.json()["error"]["message"]


def test_a_run_that_is_followed_is_served_as_its_best_policy_changes(
    make_client: MakeClient, saved_policy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qfleet.export.exporting import export_run
    from qfleet.serving import reload

    async def export_here(run: str, out: Path) -> None:
        """The command itself is tested with a real server."""
        export_run(Path(run), "onnx", out)

    monkeypatch.setattr(reload, "export_beside", export_here)
    run_dir, later = tmp_path / "run", saved_policy("CartPole-v1", seed=2)
    run_dir.mkdir()
    client = make_client(model=str(tmp_path / "followed.onnx"), run=str(run_dir), watch=True)
    assert client.get("/readyz").status_code == 503, "no policy yet"
    assert client.post("/v1/act", json={"obs": [0, 0, 0, 0]}).status_code == 503
    assert client.get("/livez").status_code == 200
    shutil.copytree(saved_policy("CartPole-v1") / "best", run_dir / "best")
    for _ in range(2000):
        if client.get("/readyz").status_code == 200:
            break
    first = version(client)
    shutil.rmtree(run_dir / "best")
    shutil.copytree(later / "best", run_dir / "best")
    until(client, 'qfleet_reloads_total{result="taken"} 1.0')
    assert version(client) != first
