"""Every layer and function of torch between two convolutions has a row, and the page says what becomes of each."""

from __future__ import annotations

import pytest
import torch

from functions import PAGE, line, outcome
from matrix.functions import MADE_FOR, names, reason_apart, rows

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
SLOW = ("nn.Transformer", "nn.MultiheadAttention", "nn.utils.parametrizations.orthogonal")
LINES = {text.partition(" | ")[0]: text for text in PAGE.read_text(encoding="utf-8").splitlines()}
EXACT = [name for name in rows() if "| exact |" in LINES[f"| `{name}`"]]
ALWAYS = {"nn.Unflatten", "nn.Bilinear", "nn.EmbeddingBag", "F.native_channel_shuffle"}
TRIED = [*sorted({*EXACT[::4], *ALWAYS}), *(name for name in rows() if name not in EXACT and not name.startswith(SLOW))]


@pytest.mark.skipif(VERSION < MADE_FOR, reason="the rows are of a newer torch")
def test_every_name_has_a_row_or_a_reason() -> None:
    """In a newer torch: give its names a row in benchmarks/matrix/functions.py, and raise MADE_FOR."""
    assert [name for name in names() if not (name in rows() or reason_apart(name))] == []
    prefixes = ("nn.", "F.", "torch.fft.")
    own = [name for name, (_, call) in rows().items() if name != call and not name.startswith("nn.utils.")]
    assert all(name.startswith(prefixes) for name in own)
    assert VERSION > MADE_FOR or set(own) <= set(names())


@pytest.mark.parametrize("name", TRIED)
def test_the_page_tells_what_becomes_of_it(name: str) -> None:
    if name.startswith(("nn.", "F.")) and not name.startswith("nn.utils.") and name not in names():
        pytest.skip("not in this version of torch")
    found = outcome(name)
    told = LINES[f"| `{name}`"]
    assert line(name, found) == told if VERSION == MADE_FOR else f" | {found.kind}" in told
