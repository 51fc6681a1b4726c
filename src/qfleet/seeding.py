"""Seeds derived from the run's one seed by name, so that adding a role never shifts another role's numbers.

Floor 0: imports nothing of qfleet.
"""

from __future__ import annotations

import zlib
from typing import cast

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """A 32-bit seed for the thing called `names`, for example derive_seed(7, "actor", 0, "env").

    The words are hashed with CRC-32 and mixed by numpy's SeedSequence, so nearby seeds and names are unrelated.
    """
    words = [zlib.crc32(str(name).encode()) for name in names]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0])


def derive_generator(seed: int, *names: str | int) -> np.random.Generator:
    """An independent numpy generator for the thing called `names`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *names)))


def generator_state(generator: np.random.Generator) -> dict[str, object]:
    """A generator's state as JSON values."""
    return cast(dict[str, object], generator.bit_generator.state)


def set_generator_state(generator: np.random.Generator, state: object) -> None:
    """Continue a generator from `generator_state`."""
    generator.bit_generator.state = cast(dict[str, object], state)
