"""Seeds derived from numbers, and random generators that are seeded for a while."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """One seed from several numbers, the same on every machine: 0 up to 2^32, which every library takes."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


@contextmanager
def seeded(seed: int, devices: bool = True) -> Iterator[None]:
    """Seed the generators of torch, Python and NumPy inside, and put their states back outside.

    Args:
        seed: 0 up to 2^32.
        devices: seed torch's generators of the accelerators as well.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerator = torch.cuda.get_rng_state_all() if devices and torch.cuda.is_available() else []
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if accelerator:
            torch.cuda.manual_seed_all(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if accelerator:
            torch.cuda.set_rng_state_all(accelerator)
