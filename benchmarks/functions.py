"""Cut every layer and function of torch between two convolutions, and write docs/functions.md."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import torchslim as ts
from matrix.functions import MADE_FOR, names, reason_apart, rows

PAGE = Path(__file__).resolve().parent.parent / "docs" / "functions.md"
MACS, REACHED, EXACT = 0.5, 0.52, 1e-9
_TITLE = f"""# Layers and functions, one by one

Every layer of `torch.nn`, every function of `torch.nn.functional` and `torch.fft` of torch {MADE_FOR[0]}.{MADE_FOR[1]},
and common functions of tensors: each between two convolutions, of which half of the multiply-adds are to go. Written
by `python benchmarks/functions.py`; a test holds it to what torchslim does.

- **exact**: cut to at most {REACHED:.0%}, and proven (`verify` in float64, at every layer: at most {EXACT:g}).
- **approximate**: left alone for the reason given; with `allow_approximate=True` cut and proven against the original in
  which the operation works on the kept channels alone.
- **left alone**: the reason is the plan's.

`x` is what the first convolution makes: 16 channels of 12x12 (1d: 12; 3d: 4x6x6). `m` is the layer, `p(8, 16)` a
parameter of that shape, `F` is `torch.nn.functional`; `tokens(x)` has a token for each position, `maps(y)` makes maps
of tokens.
"""


def tokens(x: Tensor) -> Tensor:
    """A token for each position: (N, C, 12, 12) -> (N, 144, C)."""
    return x.flatten(2).transpose(1, 2)


def maps(y: Tensor) -> Tensor:
    """Tokens as maps again: (N, 144, C) -> (N, C, 12, 12)."""
    return y.transpose(1, 2).unflatten(2, (12, 12))


class Between(nn.Module):
    """A convolution, a layer or function, and a convolution; `x` is an input."""

    def __init__(self, name: str, layer: str, call: str) -> None:
        super().__init__()
        dims = int((re.findall(r"[13](?=d)", name) or "2")[0])
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        scope = {"torch": torch, "nn": nn, "F": nn.functional, "tokens": tokens, "maps": maps}
        self.x = torch.randn(2, 3, *((12,), (12, 12), (4, 6, 6))[dims - 1])
        self.a, self.made, self.used, self.b = kind(3, 16, 3, padding=1), nn.ParameterList(), 0, nn.Identity()
        self.m = eval(layer, scope) if layer else nn.Identity()
        self.call = eval(f"lambda m, x, p: {call}", scope)
        with torch.no_grad():
            self.b = kind(self(self.x).shape[1], 5, 3, padding=1)
        self.eval()

    def parameter(self, *shape: int) -> Tensor:
        """The next parameter; made in the first run."""
        self.used += 1
        if self.used > len(self.made):
            self.made.append(nn.Parameter(torch.randn(shape)))
        return self.made[self.used - 1]

    def forward(self, x: Tensor) -> Any:
        self.used = 0
        return self.b(self.call(self.m, self.a(x), self.parameter))


class Outcome(NamedTuple):
    """What becomes of a row: "exact", "approximate" or "left alone", the share that is kept, and why channels stay."""

    kind: str
    share: float
    reason: str


def outcome(name: str) -> Outcome:
    """Cut the network of a row."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Between(name, *rows()[name])
        share, reason = _cut(model)
        if share <= REACHED:
            return Outcome("exact", share, reason)
        approximate, _ = _cut(model, allow_approximate=True)
    return Outcome("approximate" if approximate <= REACHED else "left alone", share, reason)


def _cut(model: Between, **options: bool) -> tuple[float, str]:
    """The share of the multiply-adds that is left, 1 if the proof fails, and why channels of hidden layers stay."""
    plan = ts.plan(model, model.x, macs=MACS, strict=False, **options)
    try:
        error = ts.verify(model, ts.apply(model, plan), plan, model.x)
    except ts.TorchslimError as refused:
        return 1.0, str(refused)
    if error > EXACT:
        return 1.0, "refused: the slim network differs from the silenced original"
    reasons = [left.reason for left in plan.left_alone if left.name != "b" and "the network's" not in left.reason]
    return plan.budgets[0].share, next(iter(reasons), "")


def line(name: str, found: Outcome) -> str:
    """A row of the page."""
    layer, call = rows()[name]
    shown = ", ".join(f"`{code}`" for code in (layer, call) if code not in ("", "m(x)", name))
    kind = f"{found.kind}, but for {found.share:.0%}" if found.kind == "left alone" and found.share < 1 else found.kind
    return f"| `{name}` | {shown} | {kind} | {found.reason} |"


def page() -> str:
    """The whole page."""
    sections = {"nn.": "Layers", "F.": "Functions", "torch.fft.": "Fourier transforms", "": "Tensors",
                "nn.utils.": "Computed weights"}
    lines: dict[str, list[str]] = {title: [] for title in sections.values()}
    for name, (_, call) in rows().items():
        prefix = "" if name == call else max(filter(name.startswith, sections), key=len)
        lines[sections[prefix]].append(line(name, outcome(name)) + "\n")
    parts = [_TITLE]
    for title, members in lines.items():
        parts += [f"\n## {title}\n\n| | as | outcome | why channels stay |\n|---|---|---|---|\n", *sorted(members)]
    parts.append("\n## Not between convolutions\n\n")
    apart = {name: reason for name in names() if (reason := reason_apart(name)) is not None}
    for reason in dict.fromkeys(apart.values()):
        listed = ", ".join(f"`{name}`" for name, why in apart.items() if why == reason)
        parts.append(f"- {reason[0].upper()}{reason[1:]}: {listed}.\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
