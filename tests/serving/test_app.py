"""What the served paths answer: actions, refusals that name the field, the token, the page, the metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from qfleet import load_policy

from .conftest import TOKEN

MakeClient = Callable[..., TestClient]
OBS = [[0.1, -0.2, 0.03, 0.4], [-1.0, 2.0, 0.1, -3.0], [0.0, 0.0, 0.0, 0.0]]
JSON = {"content-type": "application/json"}
BYTES = {"content-type": "application/octet-stream"}


def test_actions_and_values_are_the_policys(client: TestClient, cartpole_onnx: Path) -> None:
    policy = load_policy(cartpole_onnx)
    values = policy.q_values(np.array(OBS))
    one = client.post("/v1/act", json={"obs": OBS[1]}).json()
    assert one == {"action": int(values[1].argmax()), "version": policy.version}
    many = client.post("/v1/act", json={"obs": OBS, "q_values": True}).json()
    assert many["action"] == values.argmax(axis=1).tolist()
    np.testing.assert_allclose(many["q_values"], values, rtol=1e-5)
    raw = np.array(OBS, "<f4").tobytes()
    assert client.post("/v1/act?q_values=true", content=raw, headers=BYTES).json() == many
    assert client.post("/v1/act", content=raw[:16], headers=BYTES).json()["action"] == values[0].argmax()


def test_an_action_mask_leaves_out_what_is_illegal(client: TestClient) -> None:
    best = client.post("/v1/act", json={"obs": OBS}).json()["action"]
    mask = [[action != 0, action != 1] for action in best]
    assert client.post("/v1/act", json={"obs": OBS, "action_mask": mask}).json()["action"] == [1 - a for a in best]


WRONG: dict[str, tuple[bytes, str, str]] = {
    "not JSON": (b"{", "body", "not JSON"),
    "not UTF-8": (b'{"obs": "\xff"}', "body", "not JSON"),
    "deep": (b"[" * 15_000, "body", "not JSON"),
    "no object": (b"[1, 2, 3, 4]", "obs", "missing"),
    "no obs": (b"{}", "obs", "missing"),
    "unknown field": (b'{"obs": [0, 0, 0, 0], "observation": 1}', "observation", "no such field"),
    "a field without a name": (b'{"obs": [0, 0, 0, 0], "": 1}', "(empty)", "no such field"),
    "shape": (b'{"obs": [0, 0, 0]}', "obs", "shape [3]; this policy takes float32 [4]"),
    "too deep": (b'{"obs": [[[0, 0, 0, 0]]]}', "obs", "shape [1, 1, 4]"),
    "ragged": (b'{"obs": [[0, 0, 0, 0], [0]]}', "obs", "different lengths"),
    "none": (b'{"obs": []}', "obs", "numbers"),
    "too many": (json.dumps({"obs": [[0] * 4] * 65}).encode(), "obs", "65 observations; at most 64"),
    "NaN": (b'{"obs": [0, NaN, 0, 0]}', "obs", "NaN"),
    "infinite": (b'{"obs": [0, -Infinity, 0, 0]}', "obs", "infinite"),
    "too large": (b'{"obs": [0, 1e39, 0, 0]}', "obs", "too large for float32"),
    "a huge integer": (b'{"obs": [0, 1' + b"0" * 400 + b", 0, 0]}", "obs", "too large"),
    "strings": (b'{"obs": ["0", "1", "2", "3"]}', "obs", "numbers"),
    "booleans": (b'{"obs": [true, false, true, true]}', "obs", "numbers"),
    "one boolean": (b'{"obs": [0.5, true, 1, 2]}', "obs", "numbers"),
    "null": (b'{"obs": [null, 1, 2, 3]}', "obs", "numbers"),
    "objects": (b'{"obs": [{}, {}, {}, {}]}', "obs", "numbers"),
    "q_values": (b'{"obs": [0, 0, 0, 0], "q_values": 1}', "q_values", "true or false"),
    "mask of numbers": (b'{"obs": [0, 0, 0, 0], "action_mask": [1, 0]}', "action_mask", "booleans of shape [2]"),
    "mask shape": (b'{"obs": [0, 0, 0, 0], "action_mask": [true]}', "action_mask", "booleans of shape [2]"),
    "nothing legal": (b'{"obs": [0, 0, 0, 0], "action_mask": [false, false]}', "action_mask", "no action is legal"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_body_is_told_where(client: TestClient, name: str) -> None:
    body, field, message = WRONG[name]
    answer = client.post("/v1/act", content=body, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["field"] == field
    assert message in error["message"]


def test_integers_beyond_64_bits_are_numbers_too(client: TestClient) -> None:
    assert client.post("/v1/act", content=b'{"obs": [0, 1' + b"0" * 30 + b", 0, 0]}", headers=JSON).status_code == 200


def test_values_that_overflow_are_the_observations_fault(client: TestClient) -> None:
    large = [3e38, 3e38, -3e38, 3e38]
    for body in ({"obs": large}, {"obs": [OBS[0], large], "q_values": True}):
        answer = client.post("/v1/act", json=body)
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, "obs")
        assert "values overflow" in answer.json()["error"]["message"]


def test_too_many_are_told_when_to_come_back(make_client: MakeClient) -> None:
    answer = make_client(max_queue=2).post("/v1/act", json={"obs": OBS})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["field"] == "server"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes; an observation (float32 [4]) takes 16"),
        (b"x" * 17, "17 bytes"),
        (np.array([0, np.nan, 0, 0], "<f4").tobytes(), "NaN"),
        (bytes(16 * 65), "65 observations; at most 64"),
    ],
)
def test_wrong_raw_bytes(client: TestClient, content: bytes, message: str) -> None:
    answer = client.post("/v1/act", content=content, headers=BYTES)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_other_refusals(client: TestClient) -> None:
    assert client.get("/v1/act").status_code == 405
    assert client.get("/v1/act").headers["allow"] == "POST"
    assert client.post("/v1/act", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    large = client.post("/v1/act", content=b" " * 1_000_000, headers=JSON)
    assert (large.status_code, large.json()["error"]["field"]) == (413, "body")
    assert client.post("/v1/act", content=iter([b" " * 9_000] * 100), headers=JSON).status_code == 413, "unannounced"
    assert client.post("/v1/act?q_values=maybe", content=bytes(16), headers=BYTES).json()["error"]["field"] == "query"
    assert client.get("/nowhere").json() == {"error": {"field": "path", "message": "not found"}}
    assert client.delete("/livez").status_code == 405


def test_bytes_are_whole_numbers_from_0_to_255(saved_policy: Callable[..., Path]) -> None:
    from qfleet.serving.requests import Contract, RequestError
    from qfleet.types import EnvSpec

    contract = Contract(EnvSpec("images", (2, 2), "uint8", 3), 4)
    assert contract.read_json(b'{"obs": [[0, 255], [1.0, 2]]}').obs.tolist() == [[[0, 255], [1, 2]]]
    for wrong in (b"-1", b"256", b"0.5", b"1e300", b"NaN"):
        with pytest.raises(RequestError, match="from 0 to 255"):
            contract.read_json(b'{"obs": [[0, 255], [1, %b]]}' % wrong)


GUARDED = [("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/v1/policy"), ("POST", "/v1/reload")]


@pytest.mark.parametrize(("method", "path"), [*GUARDED, ("POST", "/v1/act")])
def test_the_token_is_asked_for(make_client: MakeClient, method: str, path: str) -> None:
    client = make_client(token=TOKEN)
    content = {"json": {"obs": OBS}} if path == "/v1/act" else {}
    for wrong in (
        {},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": TOKEN},
        {"authorization": "Bearer \xff"},
    ):
        encoded = {name: value.encode("latin-1") for name, value in wrong.items()}
        answer = client.request(method, path, headers=encoded, **content)
        assert (answer.status_code, answer.json()["error"]["field"]) == (401, "authorization")
        assert answer.headers["www-authenticate"] == "Bearer"
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert client.request(method, path, headers=headers, **content).status_code == 200


def test_probes_and_the_page_need_no_token_and_show_nothing(make_client: MakeClient) -> None:
    client = make_client(token=TOKEN)
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json()["status"] == "ready"
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "CartPole" not in page.text
    assert "http://" not in page.text.replace("http://www.w3.org", ""), "nothing is fetched from elsewhere"


def test_a_server_without_a_token_reloads_for_nobody_who_asks(client: TestClient) -> None:
    assert client.post("/v1/reload").status_code == 403


def test_metrics_count_answers_latencies_and_batches(client: TestClient) -> None:
    for _ in range(3):
        client.post("/v1/act", json={"obs": OBS[0]})
    client.post("/v1/act", json={"obs": OBS})
    client.post("/v1/act", content=b"{", headers=JSON)
    lines = client.get("/metrics").text.splitlines()
    assert 'qfleet_act_answers_total{status="200"} 4.0' in lines
    assert 'qfleet_act_answers_total{status="400"} 1.0' in lines
    assert "qfleet_act_seconds_count 4.0" in lines
    assert 'qfleet_batch_size_bucket{le="1.0"} 3.0' in lines
    assert 'qfleet_batch_size_bucket{le="4.0"} 4.0' in lines
    assert "qfleet_batch_size_sum 6.0" in lines
    assert "qfleet_queue_observations 0.0" in lines


def test_workers_count_together(tmp_path: Path) -> None:
    from qfleet.serving.counters import Counters

    Counters.make_file(tmp_path / "counters", 2)
    first, second = (Counters(str(tmp_path / "counters"), worker) for worker in range(2))
    first.answered(200, 0.003)
    second.answered(200, 99.0)
    second.answered(418, 0.0)
    lines = first.exposition("v").decode().splitlines()
    assert 'qfleet_act_seconds_bucket{le="0.0025"} 0.0' in lines
    assert 'qfleet_act_seconds_bucket{le="0.005"} 1.0' in lines
    assert 'qfleet_act_seconds_bucket{le="+Inf"} 2.0' in lines
    assert "qfleet_act_seconds_sum 99.003" in lines
    assert 'qfleet_act_answers_total{status="other"} 1.0' in lines


def test_the_document_and_the_policy_say_what_is_served(client: TestClient) -> None:
    document: dict[str, Any] = client.get("/openapi.json").json()
    number = {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38}
    schema = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
    assert document["components"]["schemas"]["Observation"] == schema
    assert set(document["paths"]) >= {"/v1/act", "/v1/reload", "/v1/policy", "/livez", "/readyz", "/metrics"}
    policy = client.get("/v1/policy").json()
    assert (policy["env_id"], policy["algo"], policy["facts"]["mean_return"]) == ("CartPole-v1", "dqn", 9.5)
    assert policy["version"] == client.get("/readyz").json()["version"]
