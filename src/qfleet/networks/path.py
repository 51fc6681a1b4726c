"""How a network is computed: in which precision, in which memory format, compiled or not. Floor 2.

float32 without a compiler is the reference that every other path is held against. The torso of an image network may run
in bfloat16 (Kalamkar et al. 2019), where the processor multiplies in it; parameters, gradients, optimizer and the head
stay float32. Which path is taken follows from what the machine can do, never from a clock, so that it repeats.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from qfleet.networks.heads import QNetwork
from qfleet.networks.low_precision import LowPrecisionTorso, fits_blocks
from qfleet.networks.torso import NetworkConfig, Torso

Precision = Literal["float32", "bfloat16"]

_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # the last one is ARM's
_COMPILERS = ("c++", "g++", "clang++")
_SMALL_BATCH = 8  # below, bfloat16 only costs conversions
_SMALL_NETWORK = 400_000  # parameters; below, no path is worth its overhead


@dataclass(frozen=True, slots=True)
class ComputePath:
    """One way to compute a network.

    Attributes:
        precision: of the torso's arithmetic; parameters and the head are float32 always.
        channels_last: whether images are laid out [B, H, W, C] in memory.
        is_compiled: whether updates go through torch.compile.
        reads_blocks: whether the first convolution reads blocks of pixels.
        note: what was asked for and could not be had; empty if nothing.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    is_compiled: bool = False
    reads_blocks: bool = False
    note: str = ""

    @property
    def is_reference(self) -> bool:
        """Whether it is float32 without a compiler."""
        return self.precision == "float32" and not self.channels_last and not self.is_compiled

    def describe(self) -> str:
        """Such as "bfloat16, compiled"."""
        more = {"compiled": self.is_compiled, "in blocks": self.reads_blocks}
        return ", ".join([self.precision, *(name for name, is_so in more.items() if is_so)])


REFERENCE = ComputePath()


def choose_path(config: NetworkConfig, module: nn.Module, device: str) -> ComputePath:
    """The path for a network: as configured, "auto" by what it is made of and what the machine can do.

    "auto" leaves small networks and those without convolutions on the reference path: nothing else would pay.
    Others get bfloat16 where the processor multiplies in it, with the channels last in memory, and on a GPU the
    compiler. On a CPU that one brings nothing any more (benchmarks/image_update.py).

    Args:
        config: the [network] section.
        module: the network.
        device: "cpu" or "cuda".
    """
    torso = module.torso if isinstance(module, QNetwork) else None
    if not isinstance(torso, Torso):
        return REFERENCE
    is_image = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
    is_large = is_image and sum(parameter.numel() for parameter in module.parameters()) >= _SMALL_NETWORK
    precision: Precision = "float32"
    if config.precision != "auto":
        precision = config.precision
    elif is_large:
        precision = _best_precision(device)
    is_gpu = is_large and device == "cuda"
    wanted = config.compile == "always" or (config.compile == "auto" and is_gpu and precision == "bfloat16")
    lacking = what_compiling_lacks(device) if wanted else ""
    is_compiled = wanted and not lacking
    note = ""
    if lacking and config.compile == "always":
        note = f"network.compile: {lacking}; updates run without"
    has_channels_last = is_image and (is_compiled or precision == "bfloat16")
    # Without matrix units blocks bring nothing.
    is_fitting = device == "cpu" and "amx_bf16" in cpu_flags() and fits_blocks(torso)
    reads_blocks = precision == "bfloat16" and is_fitting and not is_compiled
    return ComputePath(precision, has_channels_last, is_compiled, reads_blocks, note)


def what_compiling_lacks(device: str) -> str:
    """Why torch.compile cannot work here; empty if it can."""
    if device == "cuda":
        from importlib.util import find_spec

        return "" if find_spec("triton") is not None else "torch.compile needs the package triton"
    if sys.platform == "win32" or any(shutil.which(name) for name in _COMPILERS):
        return ""
    return f"torch.compile needs a C++ compiler ({', '.join(_COMPILERS)}), and there is none"


@cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor says that it can do; empty where nothing tells."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    words = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return frozenset(words[0].split()) if words else frozenset()


def forward_of(module: nn.Module, path: ComputePath, version: Callable[[], int]) -> Callable[..., Tensor]:
    """The module's forward on a path: [B, *O], and what else the head reads -> what the module returns, float32.

    Args:
        version: a number that changes whenever the module's parameters do.
    """
    if path.is_reference or not isinstance(module, QNetwork):
        return module
    torso, head = module.torso, module.head
    low = None
    if path.precision == "bfloat16":
        low = LowPrecisionTorso(torso, version, reads_blocks=path.reads_blocks)

    def forward(obs: Tensor, *inputs: Tensor) -> Tensor:
        if path.is_compiled and (torch.is_grad_enabled() or obs.shape[0] in _compiled_sizes):
            _compiled_sizes.add(obs.shape[0])
            features = _compiled_features()(torso, obs, path.precision, path.channels_last)
        elif obs.shape[0] < _SMALL_BATCH and not torch.is_grad_enabled():
            features = torso(obs)
        elif low is not None:
            features = low(obs)
        else:
            features = torso_features(torso, obs, path.precision, path.channels_last)
        values: Tensor = head(features, *inputs)
        return values

    return forward


def torso_features(torso: Torso, obs: Tensor, precision: Precision, channels_last: bool) -> Tensor:
    """`torso(obs)` in a precision and memory format, as the compiler is to see it: [B, *O] -> float32 [B, F]."""
    if precision == "float32":
        return torso.body(_laid_out(torso.prepare(obs), channels_last))  # type: ignore[no-any-return]
    with torch.autocast(obs.device.type, torch.bfloat16):
        features: Tensor = torso.body(_laid_out(torso.prepare(obs), channels_last))
    return features.float()


def _laid_out(obs: Tensor, channels_last: bool) -> Tensor:
    return obs.contiguous(memory_format=torch.channels_last) if channels_last and obs.dim() == 4 else obs


def _best_precision(device: str) -> Precision:
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if any(flag in cpu_flags() for flag in _BFLOAT16_FLAGS) else "float32"


# Batch sizes that updates have had in this process: a compiled graph fits one size, and only these are worth one.
_compiled_sizes: set[int] = set()


@cache
def _compiled_features() -> Callable[[Torso, Tensor, Precision, bool], Tensor]:
    """`torso_features` through torch.compile; one for all networks, so that equal ones share what was compiled."""
    return torch.compile(torso_features, dynamic=False)
