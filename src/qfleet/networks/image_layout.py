"""How images lie in memory for oneDNN: channels last, and in blocks of pixels. Floor 2, used by low_precision.py.

A kernel of 8 x 8 at stride 4 over 4 channels is one of 2 x 2 at stride 1 over the 64 values of a block of 4 x 4 pixels:
the same products, but long rows of channels instead of short ones, which matrix units want (space to depth). On an
Intel Xeon with AMX the Nature CNN's first forward takes two thirds of the time, the gradient of its kernel half to nine
tenths; without AMX nothing is gained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SIDE, CHANNELS = 4, 4  # of what `in_blocks` makes blocks of


def can_read_blocks(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that can read what `in_blocks` makes."""
    if not isinstance(layer, nn.Conv2d) or (layer.in_channels, *layer.stride) != (CHANNELS, SIDE, SIDE):
        return False
    is_plain = layer.padding == (0, 0) and layer.dilation == (1, 1) and layer.groups == 1
    return is_plain and not any(size % SIDE for size in layer.kernel_size)


def fold_weight(weight: Tensor) -> Tensor:
    """A kernel over pixels as one over blocks: [O, 4, H, W] -> [O, 64, H / 4, W / 4]."""
    out, channels, height, width = weight.shape
    pieces = weight.reshape(out, channels, height // SIDE, SIDE, width // SIDE, SIDE)
    return pieces.permute(0, 3, 5, 1, 2, 4).reshape(out, SIDE * SIDE * channels, height // SIDE, width // SIDE)


def in_blocks(images: Tensor) -> Tensor:
    """uint8 [B, 4, H, W] on a CPU -> [B, 64, H // 4, W // 4], channels last; a block's lines, columns, channels.

    Raises:
        ValueError: other images.
    """
    if images.dim() != 4 or images.shape[1] != CHANNELS or images.dtype != torch.uint8 or images.is_cuda:
        raise ValueError(f"{images.dtype} {list(images.shape)} on {images.device} are no images of 4 channels of bytes")
    planes, stride = _planes(images)
    num, _, height, width = images.shape
    blocks = torch.empty((num, height // SIDE, width // SIDE, SIDE * SIDE * CHANNELS), dtype=torch.uint8)
    if num:
        from qfleet.networks.interleave import fold_four  # numba, which takes a while to load

        fold_four(planes.numpy(), stride, height, width, blocks.numpy())
    return blocks.permute(0, 3, 1, 2)


def channels_last(images: Tensor) -> Tensor:
    """[B, C, H, W] with the channels last in memory; bytes on a CPU by a kernel seven times as fast as torch's.

    Images may lie apart, as the two stacks of a transition do that share their frames.
    """
    num, channels, height, width = images.shape
    size = height * width
    if images.dtype != torch.uint8 or images.is_cuda or num == 0 or not _lies_in_planes(images):
        return images.contiguous(memory_format=torch.channels_last)
    from qfleet.networks.interleave import interleave  # numba, which takes a while to load

    planes, stride = _planes(images)
    laid_out = torch.empty((num, height, width, channels), dtype=torch.uint8)
    interleave(planes.numpy(), stride, laid_out.numpy().reshape(num, size, channels))
    return laid_out.permute(0, 3, 1, 2)


class FlattenImages(torch.autograd.Function):
    """[B, C, H, W] -> [B, C * H * W], with a gradient that has its channels last.

    torch's own would come in planes, and a ReLU's gradient of the one layout by the other takes 20 times as long.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C * H * W]."""
        ctx.shape = images.shape
        return images.flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """[B, C * H * W] -> [B, C, H, W]."""
        return gradient.view(ctx.shape).contiguous(memory_format=torch.channels_last)


def _lies_in_planes(images: Tensor) -> bool:
    _, _, height, width = images.shape
    return images.stride()[1:] == (height * width, width, 1)


def _planes(images: Tensor) -> tuple[Tensor, int]:
    """The bytes of all images in a row, and from one image to the next how many; copied unless they lie in planes."""
    if not _lies_in_planes(images):
        images = images.contiguous()
    num, stride = images.shape[0], images.stride(0)
    num_bytes = (num - 1) * stride + images[0].numel() if num else 0
    return images.as_strided((num_bytes,), (1,)), stride
