"""Convolutions over blocks of pixels are those over pixels: exact in whole numbers, whatever the memory looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qfleet.networks.image_layout import FlattenImages, can_read_blocks, channels_last, fold_weight, in_blocks


def whole_numbers(*shape: int, below: int = 256) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(sum(shape)))


def layouts(images: torch.Tensor) -> list[torch.Tensor]:
    """The same images: alone, one of two stacks side by side, every other one, channels last, columns before lines."""
    beside = torch.cat([images, images], dim=1)
    apart = torch.stack([images, images], dim=1).flatten(0, 1)
    last = images.to(memory_format=torch.channels_last)
    swapped = images.transpose(2, 3).contiguous().transpose(2, 3)
    return [images, beside[:, 4:], apart[::2], last, swapped]


@pytest.mark.parametrize(("num", "height", "width"), [(3, 84, 84), (2, 9, 14), (1, 4, 4), (0, 8, 8)])
def test_blocks_hold_their_lines_columns_and_channels(num: int, height: int, width: int) -> None:
    images = whole_numbers(num, 4, height, width).to(torch.uint8)
    expected = np.zeros((num, 64, height // 4, width // 4), np.uint8)
    for y, x in np.ndindex(height // 4 * 4, width // 4 * 4):
        for channel in range(4):
            expected[:, (y % 4) * 16 + (x % 4) * 4 + channel, y // 4, x // 4] = images[:, channel, y, x]
    for given in layouts(images):
        blocks = in_blocks(given)
        np.testing.assert_array_equal(blocks.numpy(), expected)
        assert blocks.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 8, dtype=torch.uint8),
        torch.zeros(4, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 4, 8, 8),
    ],
)
def test_other_images_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no images of 4 channels of bytes"):
        in_blocks(images)


@pytest.mark.parametrize("size", [(84, 84), (21, 18)])  # the second leaves lines and columns over, as a stride does
@pytest.mark.parametrize("kernel", [(8, 8), (4, 8)])
def test_a_convolution_over_blocks_is_the_one_over_pixels(size: tuple[int, int], kernel: tuple[int, int]) -> None:
    layer = nn.Conv2d(4, 5, kernel, stride=4)
    assert can_read_blocks(layer)
    images, weight = whole_numbers(2, 4, *size), whole_numbers(5, 4, *kernel, below=9).double()
    expected = functional.conv2d(images.double(), weight, stride=4)
    blocks = in_blocks(images.to(torch.uint8)).double()
    assert torch.equal(functional.conv2d(blocks, fold_weight(weight)), expected)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 8, stride=3),
        nn.Conv2d(4, 8, 6, stride=4),
        nn.Conv2d(4, 8, 8, stride=4, padding=2),
        nn.Conv2d(4, 8, 8, stride=4, dilation=2),
        nn.Conv2d(4, 8, 8, stride=4, groups=2),
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(3, 8, 8, stride=4),
        nn.Linear(4, 4),
    ],
    ids=str,
)
def test_other_layers_read_pixels(layer: nn.Module) -> None:
    assert not can_read_blocks(layer)


def test_flat_images_are_torchs_and_their_gradient_has_its_channels_last() -> None:
    images = channels_last(torch.randn(3, 5, 4, 6)).requires_grad_()
    seen: list[torch.Tensor] = []
    images.register_hook(seen.append)
    flat = FlattenImages.apply(images)
    assert torch.equal(flat, images.flatten(1))
    gradient = torch.randn(3, 5 * 4 * 6)
    flat.backward(gradient)
    assert images.grad is not None
    assert torch.equal(images.grad.flatten(1), gradient)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
