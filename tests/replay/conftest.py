"""Transitions whose every field is a function of their key, so that a row in the wrong place shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qfleet.types import EnvSpec, Transitions

SPECS = {
    "vector": EnvSpec("Vector-v0", (3,), "float32", 2),
    "image": EnvSpec("Image-v0", (5, 3), "uint8", 300, has_action_mask=True),
    "discrete": EnvSpec("Discrete-v0", (), "int64", 70_000),
    "masked": EnvSpec("Masked-v0", (2,), "float64", 3, has_action_mask=True),
}


def _numbered(spec: EnvSpec, keys: np.ndarray | range) -> Transitions:
    keys = np.asarray(keys, np.int64)
    size = int(np.prod(spec.obs_shape))
    obs = (keys[:, None] * 7 + np.arange(size)).reshape(len(keys), *spec.obs_shape)
    mask = (keys[:, None] + np.arange(spec.num_actions)) % 3 == 0
    return Transitions(
        obs=obs.astype(spec.obs_dtype),
        action=keys % spec.num_actions,
        reward=(keys * 0.5).astype(np.float32),
        discount=(1.0 / (keys + 1)).astype(np.float32),
        next_obs=(obs + 100).astype(spec.obs_dtype),
        next_action_mask=mask if spec.has_action_mask else None,
    )


def _assert_equal(got: Transitions, want: Transitions) -> None:
    for name in ("obs", "action", "reward", "discount", "next_obs", "next_action_mask"):
        left, right = getattr(got, name), getattr(want, name)
        if right is None:
            assert left is None
            continue
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.fixture(scope="session")
def numbered() -> Callable[..., Transitions]:
    return _numbered


@pytest.fixture(scope="session")
def assert_equal() -> Callable[..., None]:
    return _assert_equal


@pytest.fixture(params=SPECS.values(), ids=SPECS.keys(), scope="session")
def spec(request: pytest.FixtureRequest) -> EnvSpec:
    return request.param


@pytest.fixture(scope="session")
def vector_spec() -> EnvSpec:
    return SPECS["vector"]
