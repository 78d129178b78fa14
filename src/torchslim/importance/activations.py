"""A criterion by activation statistics on unlabelled batches, measured at the inputs of the next layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from torchslim.coupling.groups import ChannelGroup
from torchslim.errors import RequestError
from torchslim.importance.criterion import Criterion, Needs, Normalize
from torchslim.importance.evidence import Evidence
from torchslim.importance.types import Scores
from torchslim.utils.copying import copy_model
from torchslim.utils.data import call_on_batch
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs
from torchslim.utils.modules import BLOCK_ELEMENTS, names_of_modules

Statistic = Literal["mean_abs", "rms", "variance", "apoz"]
Table = NDArray[np.float64]


@dataclass(frozen=True)
class Activation(Criterion):
    """Activation statistic of the channel on unlabelled data, relative to the group's mean.

    Measured in eval mode at the inputs of the convolutions, linear and recurrent layers that read the channel, so after
    norms, activations and additions; over all positions, samples and layers. Hidden units of recurrent layers are
    measured where they leave: at every step of the last layer, after the last step of the others.

    Attributes:
        statistic: "rms", the root mean square; "mean_abs", the mean of |a|; "variance", which is 0 for a constant
            channel that a bias can replace (Polyak and Wolf 2015); "apoz", the share of nonzero values: 1 minus the
            average percentage of zeros (Hu et al. 2016, equation 1).
    """

    statistic: Statistic = "rms"
    normalize: Normalize = field(default="mean", kw_only=True)
    needs: ClassVar[Needs] = "inputs"
    name: ClassVar[str] = "activation"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"statistic": get_args(Statistic)}

    def __call__(self, groups: Sequence[ChannelGroup], evidence: Evidence) -> Sequence[Scores]:
        """See `Criterion`.

        Raises:
            RequestError: the model fails on a batch, or no layer that reads a group's channels ran.
        """
        if "moments" not in evidence.memo:
            evidence.memo["moments"] = _measured(evidence.model, evidence.batches)
        readers = readers_of(evidence.model)
        return [_STATISTICS[self.statistic](_moments(group, evidence, readers)) for group in groups]


@dataclass
class Moments:
    """Means over all activations a of some channels: of a, |a|, a^2 and of the indicator a != 0."""

    mean: Table
    size: Table
    square: Table
    active: Table


_STATISTICS: dict[str, Callable[[Moments], Scores]] = {
    "mean_abs": lambda seen: seen.size,
    "rms": lambda seen: np.sqrt(seen.square),
    "variance": lambda seen: np.maximum(seen.square - np.square(seen.mean), 0.0),
    "apoz": lambda seen: seen.active,
}


def readers_of(model: nn.Module) -> dict[int, list[str]]:
    """Names of layers by the id of each of their tensors, which may be tied."""
    readers: dict[int, list[str]] = {}
    for name, layer in _layers(model):
        for tensor in (*layer.parameters(), *layer.buffers()):  # tensors of a parametrized weight, too
            readers.setdefault(id(tensor), []).append(name)
    return readers


def _moments(group: ChannelGroup, evidence: Evidence, readers: Mapping[int, list[str]]) -> Moments:
    """Channels' moments over all readers of a group."""
    sums, count = np.zeros((4, group.channels)), 0
    for member in group.members:
        if member.role == "reads":
            for name in (member.name, *readers.get(id(evidence.state[member.name]), ())):
                tally = evidence.memo["moments"].get(name)
                if tally is not None and tally.sums.shape[1] > member.indices.max():
                    sums += tally.sums[:, member.indices].sum(2)
                    count += tally.count * member.indices.shape[1]
    if not count:
        raise RequestError("importance 'activation': no convolution, linear or recurrent layer that ran on the data "
                           f"reads the channels of `{group.name}`; leave it alone with exclude=, or use "
                           "importance='l2'")
    return Moments(*(sums / count))


# --- the run ------------------------------------------------------------------------------------------------

class _Tally:
    """Sums over a layer's inputs a: of a, |a|, a^2 and of the indicator a != 0, shape (4, channels)."""

    def __init__(self) -> None:
        self.sums: Table = np.zeros((4, 0))
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Add a batch, (B, channels, values)."""
        for part in torch.split(x.detach(), max(1, BLOCK_ELEMENTS * len(x) // max(x.numel(), 1))):
            a = part.double()
            sums = torch.stack([a.sum((0, 2)), a.abs().sum((0, 2)), a.square().sum((0, 2)), (a != 0).sum((0, 2))])
            self.sums = sums.cpu().numpy() + (self.sums if self.count else 0)
            self.count += len(part) * part.shape[2]


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers whose inputs are measured."""
    return ((name, module) for module, name in names_of_modules(model).items()
            if isinstance(module, _ConvNd | nn.Linear))


def _measured(model: nn.Module, batches: Sequence[Inputs]) -> dict[str, _Tally]:
    """Input sums of each layer that ran, and of each weight of recurrent layers."""
    model, tallies = copy_model(model), dict[str, _Tally]()
    for name, layer in _layers(model):
        dims = len(layer.kernel_size) if isinstance(layer, _ConvNd) else None

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name,
                 dims: int | None = dims) -> None:
            x = next(iter((*args, *kwargs.values())))
            x = x.reshape(-1, x.shape[-1], 1) if dims is None else x.reshape(-1, *x.shape[-dims - 1:]).flatten(2)
            tallies.setdefault(name, _Tally()).add(x)

        layer.register_forward_pre_hook(note, with_kwargs=True)
    for recurrent, name in names_of_modules(model).items():
        def note_states(layer: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
            for weight, read in _read_by_weights(layer, args[0], output):
                tallies.setdefault(f"{name}.{weight}" if name else weight, _Tally()).add(
                    read.data.reshape(-1, read.data.shape[-1], 1))

        if isinstance(recurrent, nn.RNNBase | nn.RNNCellBase):
            recurrent.register_forward_hook(note_states)
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for index, batch in enumerate(batches):
            call_on_batch(model, batch, index)
    return tallies


def _read_by_weights(layer: Any, x: Any, output: Any) -> Iterator[tuple[str, Any]]:
    """What each weight of a recurrent layer or cell reads; what only its last step shows, of that."""
    if isinstance(layer, nn.RNNCellBase):
        yield from (("weight_ih", x), ("weight_hh", output[0] if isinstance(output, tuple) else output))
        return
    sequence, states = output
    hidden, cell = states if isinstance(states, tuple) else (states, None)
    suffixes = ("", "_reverse")[:1 + layer.bidirectional]
    for number in range(layer.num_layers):
        rows = slice(number * len(suffixes), (number + 1) * len(suffixes))
        last = number == layer.num_layers - 1
        parts = sequence.data.chunk(len(suffixes), -1) if last else hidden[rows]
        for suffix, part, state in zip(suffixes, parts, hidden[rows] if cell is None else cell[rows], strict=True):
            yield f"weight_ih_l{number}{suffix}", x
            yield f"weight_hh_l{number}{suffix}", part
            if layer.proj_size:
                yield f"weight_hr_l{number}{suffix}", state.tanh()
        x = torch.cat([*parts], -1)
