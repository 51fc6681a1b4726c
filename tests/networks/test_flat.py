"""A network and its vectors are one thing seen twice; snapshots are neither."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qfleet.errors import CheckpointError, UsageError
from qfleet.networks.flat import FlatNetwork, layout_hash, vector_sha256
from qfleet.networks.observations import ObservationNorm
from qfleet.roles.blueprint import copy_network


class Tied(nn.Module):
    """Two layers; with `tied` they share one weight."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_the_vector_holds_the_parameters_in_order() -> None:
    module = nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0]]))
        module.bias.fill_(3.0)
    network = FlatNetwork(module)
    np.testing.assert_array_equal(network.vector, [1.0, 2.0, 3.0])
    assert network.num_parameters == 3


def test_changing_the_vector_changes_the_output() -> None:
    network = FlatNetwork(nn.Linear(2, 1))
    network.vector.copy_(torch.tensor([10.0, 100.0, 5.0]))
    # 10 * 2 + 100 * 3 + 5 = 325
    assert network.module(torch.tensor([[2.0, 3.0]])).item() == 325.0


def test_the_gradient_vector_is_autograds_in_order() -> None:
    torch.manual_seed(0)
    module = small()
    twin = small()
    twin.load_state_dict(module.state_dict())
    x = torch.randn(5, 3)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(twin(x).square().sum(), list(twin.parameters()))])
    network = FlatNetwork(module)
    network.module(x).square().sum().backward()
    assert network.gradient is not None
    np.testing.assert_array_equal(network.gradient, expected)
    assert np.count_nonzero(network.gradient) > 10
    # A second backward adds to the very same vector, so zeroing the vector is zeroing the gradient.
    network.gradient.zero_()
    network.module(x).square().sum().backward()
    np.testing.assert_array_equal(network.gradient, expected)


def test_a_frozen_network_has_no_gradient() -> None:
    network = FlatNetwork(small(), trainable=False)
    assert network.gradient is None
    assert not network.module(torch.zeros(1, 3)).requires_grad


def test_buffers_are_views_too() -> None:
    network = FlatNetwork(nn.Sequential(ObservationNorm((2,)), nn.Linear(2, 1)))
    np.testing.assert_array_equal(network.buffers, [0, 0, 1, 1, 0])  # mean, variance, count
    network.module[0].observe(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    np.testing.assert_array_equal(network.buffers, [2, 20, 1, 100, 2])
    network.buffers[0] = -7.0
    assert network.module[0].mean[0] == -7.0


def test_an_integer_buffer_is_left_alone() -> None:
    module = nn.BatchNorm1d(2)  # its num_batches_tracked is int64
    network = FlatNetwork(module)
    assert network.buffers.numel() == 4
    assert module.num_batches_tracked.dtype == torch.int64


def test_tied_parameters_count_once_and_stay_tied() -> None:
    network = FlatNetwork(Tied(tied=True))
    assert network.num_parameters == 9
    network.vector.copy_(torch.eye(3).reshape(-1) * 2)
    np.testing.assert_array_equal(network.module(torch.ones(1, 3)).detach(), [[4.0, 4.0, 4.0]])
    twin = copy_network(network)
    twin.vector.mul_(0.5)
    np.testing.assert_array_equal(twin.module(torch.ones(1, 3)), [[1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(network.module(torch.ones(1, 3)).detach(), [[4.0, 4.0, 4.0]])


def test_the_layout_hash_is_of_names_and_shapes_not_of_values() -> None:
    assert layout_hash(small()) == layout_hash(small())
    others = [
        nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),  # another width
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),  # same shapes, other names
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), ObservationNorm((2,))),  # one more buffer
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
    ]
    hashes = {layout_hash(module) for module in [small(), *others]}
    assert len(hashes) == 1 + len(others)
    assert layout_hash(Tied(tied=True)) != layout_hash(Tied(tied=False))


def test_a_snapshot_survives_later_training_and_cannot_be_written() -> None:
    network = FlatNetwork(nn.Sequential(ObservationNorm((1,)), nn.Linear(1, 1)))
    snapshot = network.snapshot(version=7)
    before = snapshot.vector.copy(), snapshot.buffers.copy()
    network.vector.fill_(99.0)
    network.buffers.fill_(98.0)
    np.testing.assert_array_equal(snapshot.vector, before[0])
    np.testing.assert_array_equal(snapshot.buffers, before[1])
    assert snapshot.version == 7
    for array in (snapshot.vector, snapshot.buffers):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def test_load_takes_over_values_and_keeps_the_views() -> None:
    source, target = FlatNetwork(small()), FlatNetwork(small())
    target.load(source.snapshot(1))
    x = torch.randn(4, 3)
    assert torch.equal(source.module(x), target.module(x))
    target.vector.zero_()
    assert torch.count_nonzero(target.module(x)) == 0
    assert torch.count_nonzero(source.module(x)) > 0, "load must copy, not share"


def test_load_refuses_another_layout_and_changes_nothing() -> None:
    network = FlatNetwork(small())
    before = network.vector.clone()
    # Same number of parameters: 3 * 4 + 4 + 4 * 2 + 2 = 26 = 25 + 1, so only the layout tells them apart.
    foreign = FlatNetwork(nn.Linear(25, 1))
    assert foreign.num_parameters == network.num_parameters == 26
    with pytest.raises(CheckpointError, match=r"another network.*26 values"):
        network.load(foreign.snapshot(0))
    assert torch.equal(network.vector, before)


def test_a_module_without_parameters_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="Tanh has no parameters"):
        FlatNetwork(nn.Tanh())


def test_vector_sha256_is_of_the_little_endian_bytes() -> None:
    # sha256 of 00 00 80 3f (1.0) and 00 00 00 c0 (-2.0), from coreutils: printf '...' | sha256sum
    assert vector_sha256(np.array([1.0, -2.0], np.float32)) == vector_sha256(np.array([1.0, -2.0], ">f4"))
    import hashlib

    expected = hashlib.sha256(bytes.fromhex("0000803f000000c0")).hexdigest()
    assert vector_sha256(np.array([1.0, -2.0], np.float32)) == expected
