"""Seeds derived from numbers, and random generators that are seeded for a while."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


class RandomStream:
    """States of torch's CPU generator, Python's and NumPy's that are put in again and again, and go on where they were.

    `with stream:` has them inside; outside, the generators are as they were before.
    """

    def __init__(self, seed: int) -> None:
        with seeded(seed, devices=False):
            self._own = _states()
        self._others: list[tuple[Any, Any, torch.Tensor]] = []

    def __enter__(self) -> None:
        self._others.append(_states())
        _put_in(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = _states()
        _put_in(self._others.pop())


def _states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _put_in(states: tuple[Any, Any, torch.Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
