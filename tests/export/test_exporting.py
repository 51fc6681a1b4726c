"""Exported files give the policy's values, say what they are, and are not written where they disagree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript")

from safetensors import safe_open

from qfleet import load_policy
from qfleet.errors import CheckpointError, ExportError, UsageError
from qfleet.export import exporting
from qfleet.export.exporting import Export, export_run
from qfleet.export.onnx_file import build_onnx, inner_layers
from qfleet.networks.noisy import NoisyLinear
from qfleet.onnx_policy import OnnxPolicy

SavedPolicy = Callable[..., Path]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("CartPole-v1", {"network.layer_norm": True}),
    "dueling noisy normalised": (
        "CartPole-v1",
        {"algo.dueling": True, "algo.noisy": True, "network.normalize_observations": True},
    ),
    "images": ("tests_export_images:Images", {"network.hidden": [8], "replay.store_frames_once": False}),
    "c51": ("CartPole-v1", {"algo": "c51"}),
    "qr_dqn": ("CartPole-v1", {"algo": "qr_dqn"}),
    "iqn noisy": ("CartPole-v1", {"algo": "iqn", "algo.noisy": True}),
    "logits": ("CartPole-v1", {"algo": "a2c"}),
    "masks": ("qfleet/MaskedChain-v0", {"algo": "pqn"}),
}
TORSO = """
from torch import nn


class Fixed(nn.Linear):
    def __init__(self, obs_shape):
        super().__init__(4, 8)

    def forward(self, obs):
        return super().forward(obs).reshape(len(obs), 8)
"""
IMAGES = """
import gymnasium as gym
import numpy as np


class Images(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (2, 36, 40), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (2, 36, 40), np.uint8), {}

    def step(self, action):
        obs = self.np_random.integers(0, 256, (2, 36, 40), np.uint8)
        return obs, float(action), bool(self.np_random.random() < 0.1), False, {}
"""


@pytest.fixture(autouse=True)
def _images_can_be_imported(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "tests_export_images.py").write_text(IMAGES, "utf-8")
    (folder / "tests_export_torso.py").write_text(TORSO, "utf-8")
    monkeypatch.syspath_prepend(str(folder))


def draw_observations(policy: Any, count: int) -> np.ndarray:
    draw = np.random.default_rng(5)
    shape = (count, *policy.spec.obs_shape)
    if policy.spec.obs_dtype == "uint8":
        return draw.integers(0, 256, shape, np.uint8)
    return draw.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_file_gives_the_values_of_its_policy(saved_policy: SavedPolicy, kind: str) -> None:
    run_dir = saved_policy(*KINDS[kind])
    exported = export_run(run_dir)
    policy, onnx = load_policy(run_dir), load_policy(exported.path)
    assert isinstance(onnx, OnnxPolicy)
    for count in (1, 2, 7):  # the batch axis is free
        obs = draw_observations(policy, count)
        values = policy.q_values(obs)
        assert np.ptp(values) > 0.01
        np.testing.assert_allclose(onnx.q_values(obs), values, rtol=1e-4, atol=1e-4 * np.abs(values).max())
        assert np.array_equal(onnx.act(obs), values.argmax(axis=1))
    assert onnx.act(obs[0]) == values[0].argmax()
    body = onnx.description.body
    assert body["spec"] == json.loads(json.dumps({n: getattr(policy.spec, n) for n in type(policy.spec).__slots__}))
    assert (body["env_id"], body["algo"]) == (policy.spec.env_id, str(KINDS[kind][1].get("algo", "dqn")))
    assert body["facts"] == {"version": 7, "num_env_steps": 400, "mean_return": 9.5, "episodes": 4}
    assert body["agreement"]["num_observations"] == 1000
    assert body["agreement"]["max_relative_error"] < 1e-4
    assert ("logits" in body["outputs"]["q_values"]) == (kind == "logits")
    assert onnx.make_env().observation_space.shape == policy.spec.obs_shape


def test_a_network_of_one_batch_size_is_refused(saved_policy: SavedPolicy) -> None:
    run_dir = saved_policy("CartPole-v1", {"network.kind": "tests_export_torso:Fixed"})
    with pytest.raises(ExportError, match=r"where it says len\(x\), write x\.shape\[0\]"):
        export_run(run_dir)
    assert not (run_dir / "policy.onnx").exists()


def test_an_action_mask_is_kept_to(cartpole_onnx: Path) -> None:
    policy = load_policy(cartpole_onnx)
    obs = draw_observations(policy, 5)
    best = np.asarray(policy.act(obs))
    only_other = np.arange(2)[None] != best[:, None]
    assert np.array_equal(policy.act(obs, only_other), 1 - best)
    assert policy.act(obs[0], only_other[0]) == 1 - best[0]


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 4), ()])
def test_another_shape_is_refused(cartpole_onnx: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"takes \(4,\) or a batch of it"):
        load_policy(cartpole_onnx).act(np.zeros(shape))


def test_the_file_names_its_opset_and_nothing_of_the_machine_that_wrote_it(cartpole_onnx: Path) -> None:
    import onnx

    content = cartpole_onnx.read_bytes()
    model = onnx.load_from_string(content)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert load_policy(cartpole_onnx).description.body["opset"] == 18
    for secret in (b"site-packages", b".py", str(Path.cwd()).encode()):
        assert secret not in content


def test_a_torch_program_has_a_free_batch_axis_and_the_description(saved_policy: SavedPolicy) -> None:
    run_dir = saved_policy("CartPole-v1", {"algo.noisy": True})
    exported = export_run(run_dir, "torch")
    files = {"qfleet.json": ""}
    program = torch.export.load(exported.path, extra_files=files)  # our own file
    obs = draw_observations(load_policy(run_dir), 5)
    values, actions = program.module()(torch.from_numpy(obs))
    np.testing.assert_allclose(values.numpy(), load_policy(run_dir).q_values(obs), rtol=1e-5)
    assert np.array_equal(actions.numpy(), load_policy(run_dir).act(obs))
    assert json.loads(files["qfleet.json"])["env_id"] == "CartPole-v1"


def test_safetensors_hold_the_named_weights_and_the_description(saved_policy: SavedPolicy) -> None:
    exported = export_run(saved_policy("CartPole-v1"), "safetensors")
    with safe_open(exported.path, "np") as file:
        assert file.get_tensor("torso.body.0.weight").shape == (16, 4)
        description = json.loads(file.metadata()["qfleet"])
    assert (description["file_format"], description["algo"]) == ("safetensors", "dqn")


def test_what_disagrees_leaves_no_file_and_keeps_the_old_one(
    saved_policy: SavedPolicy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_dir = saved_policy("CartPole-v1", {"algo.noisy": True})
    (tmp_path / "old.onnx").write_bytes(b"the one before")
    build = exporting.build_greedy_network

    def build_with_noise(*args: Any) -> Any:
        """The mistake that the comparison is for: noise left on."""
        network = build(*args)
        for layer in network.modules():
            if isinstance(layer, NoisyLinear):
                layer.resample(torch.Generator().manual_seed(0))
                layer.mean_only = False
        return network

    monkeypatch.setattr(exporting, "build_greedy_network", build_with_noise)
    for name in ("old.onnx", "new.onnx"):
        with pytest.raises(ExportError, match="disagrees with the policy"):
            export_run(run_dir, "onnx", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == b"the one before"


@pytest.mark.parametrize("kind", ["mlp", "images"])
def test_int8_keeps_the_actions_whatever_else_is_in_a_batch(
    saved_policy: SavedPolicy, kind: str, tmp_path: Path
) -> None:
    run_dir = saved_policy(*KINDS[kind])
    out = tmp_path / "policy.onnx"
    exported = export_run(run_dir, "onnx", out, int8=True)
    assert exported.agreement.equal_actions >= 0.99
    assert exported.agreement.returns is not None
    policy = OnnxPolicy.read(out)
    description = policy.description.body
    assert description["int8"]
    assert description["agreement"]["returns"]["num_episodes"] == 4
    assert b"zero_point" in out.read_bytes(), "quantised"
    obs = draw_observations(policy, 8)
    for values, one in zip(policy.q_values(obs), obs, strict=True):  # type: ignore[arg-type]
        np.testing.assert_allclose(policy.q_values(one), values, rtol=1e-5, err_msg="whatever else is in the batch")


def test_int8_leaves_the_first_and_the_last_layer_as_they_are(saved_policy: SavedPolicy) -> None:
    # Values of c51 are a product of the last layer's probabilities with the atoms: no layer.
    for hidden, inner in ([8, 8, 8], ["node_linear_1", "node_linear_2"]), ([8], ["node_linear", "node_linear_1"]):
        export = Export(saved_policy("CartPole-v1", {"algo": "c51", "network.hidden": hidden}))
        assert inner_layers(build_onnx(export.network, export.obs[:2]).graph) == inner


def test_an_altered_file_is_found_out_by_its_golden_observations(cartpole_onnx: Path) -> None:
    import onnx

    OnnxPolicy.read(cartpole_onnx).check_golden()
    model = onnx.load(cartpole_onnx)
    weight = max(model.graph.initializer, key=lambda value: len(value.raw_data))
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    with pytest.raises(CheckpointError, match="golden observations are off by"):
        OnnxPolicy(model.SerializeToString()).check_golden()


def test_other_files_are_refused_in_one_line(tmp_path: Path, cartpole_onnx: Path) -> None:
    import onnx

    foreign = onnx.load(cartpole_onnx)
    del foreign.metadata_props[:]
    damaged = onnx.load(cartpole_onnx)
    damaged.metadata_props[0].value = damaged.metadata_props[0].value.replace('"golden"', '"decoy"')
    contents = {
        "not an ONNX file": b"no",
        "no exported policy": foreign.SerializeToString(),
        "description is damaged": damaged.SerializeToString(),
    }
    for message, content in contents.items():
        (tmp_path / "other.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_policy(tmp_path / "other.onnx")
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no such file"):
        load_policy(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pickle",), "one of onnx, torch, safetensors"),
        (("torch", None), "is for --format onnx"),
        (("torch", Path("policy.onnx")), "ends in .pt2"),
    ],
)
def test_wrong_requests(saved_policy: SavedPolicy, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_run(Path("nowhere"), *arguments, int8=arguments == ("torch", None))
