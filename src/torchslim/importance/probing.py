"""What errors cost that layers make: second moments of what each reads, and how the outputs feel what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchslim.calling import Inputs, arguments, tensors_in
from torchslim.copying import copied
from torchslim.errors import RequestError
from torchslim.latency import evaluating
from torchslim.moments import Sampler, wide
from torchslim.settling import counts, settled
from torchslim.spec import Spec
from torchslim.wording import first_line

PLACES = 64
"""So many places of each map are looked at: pictures differ more than places of one picture do."""


@dataclass
class Probed:
    """What a layer was seen to read, and how the network's outputs feel what it gives.

    Attributes:
        columns: sets of what its filters see; each filter of a group of channels sees fan-in x taps numbers.
        moments: of each set the second moments about the means, (G, F, F), F as many as the set has.
        shift: what is near the means, and taken off before sums are made.
        felt: (N,): squared gradients of a random projection of the network's outputs, summed over
            maps and items; None where no gradient reaches the layer.
    """

    spec: Spec
    columns: Sequence[Tensor]
    look: Sampler
    moments: list[Tensor] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    places: int = 0
    shift: Tensor | None = None
    felt: Tensor | None = None

    def see(self, x: Tensor) -> None:
        """Count what the layer reads."""
        views = torch.cat([one for one, _ in self.look(wide(x.detach()))])
        rows = views.reshape(len(views), self.spec.groups, -1).transpose(0, 1)
        if self.shift is None:  # sums of squares about the wrong mean lose what is small beside it
            self.shift = rows.mean(1, keepdim=True)
        rows = rows - self.shift
        self.places += len(views)
        for place, columns in enumerate(self.columns):
            a = rows[:, :, columns.to(rows.device)]
            squares, sums = (a.mT @ a).double().cpu(), a.sum(1).double().cpu()
            if len(self.moments) == place:
                self.moments.append(squares)
                self.means.append(sums)
            else:
                self.moments[place] += squares
                self.means[place] += sums

    def feel(self, gradient: Tensor) -> None:
        """Count how the outputs feel the layer's, (B, N, *map) or (*, N)."""
        dim = gradient.dim() - 1 - self.spec.dims
        squares = gradient.double().square().movedim(dim, 0).flatten(1).sum(1).cpu()
        self.felt = squares if self.felt is None else self.felt + squares

    def finish(self) -> None:
        """Sums become means."""
        self.means = [sums / self.places for sums in self.means]
        self.moments = [squares / self.places - means.unsqueeze(2) * means.unsqueeze(1)
                        for squares, means in zip(self.moments, self.means, strict=True)]


def probe(model: nn.Module, batches: Sequence[Inputs], layers: Mapping[str, tuple[Spec, Sequence[Tensor]]],
          seed: int) -> dict[str, Probed]:
    """Run all batches once, forth and back, in a copy whose batch norms have the statistics of these batches.

    On a few pictures many channels are silent that speak on others. In that copy every channel is as active as it was
    in training.

    Args:
        model: left as it was.
        batches: inputs without targets.
        layers: which, as what, and which sets of columns of what each filter sees.
        seed: of the projection of the outputs.

    Raises:
        RequestError: the model fails on a batch, or has no outputs that are differentiable.
        TraceError: it fails, or runs other layers on one batch than on another.
    """
    network = settled(model, batches) if any(counts(module) for module in model.modules()) else copied(model)
    found = {name: Probed(spec, columns, Sampler(spec, PLACES)) for name, (spec, columns) in layers.items()}
    chance = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with evaluating(network), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for place, batch in enumerate(batches):
            given: list[tuple[str, Tensor]] = []
            handles = list(_watched(network, found, given))
            try:
                args, kwargs = arguments(batch)
                outputs = network(*args, **kwargs)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise RequestError(f"data: batch {place} fails: {first_line(error)}; wanted what the model is called "
                                   "with; where the batches are (inputs, targets), give loss= too, or "
                                   "data=(x for x, *_ in loader)") from error
            finally:
                for handle in handles:
                    handle.remove()
            for (name, _), gradient in zip(given, _gradients(outputs, [y for _, y in given], chance), strict=True):
                if gradient is not None:
                    found[name].feel(gradient)
    for one in found.values():
        one.finish()
    return {name: one for name, one in found.items() if one.places}


def _watched(network: nn.Module, found: Mapping[str, Probed],
             given: list[tuple[str, Tensor]]) -> Iterator[RemovableHandle]:
    for name in found:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor, name: str = name) -> Tensor:
            found[name].see(next(iter((*args, *kwargs.values()))))
            given.append((name, y))
            return y.clone()  # what comes next may write into it, and the gradient would be that of what it wrote

        yield network.get_submodule(name).register_forward_hook(note, with_kwargs=True)


def _gradients(outputs: Any, given: Sequence[Tensor], chance: torch.Generator) -> Sequence[Tensor | None]:
    """Of a projection of all outputs with random signs, with respect to what layers gave."""
    felt = [y for y in tensors_in(outputs) if y.requires_grad]
    if not felt:
        raise RequestError("importance 'obs': no output of the model is differentiable, so that nothing says what its "
                           "layers' errors cost; use importance='activation'")
    signs = [torch.randint(0, 2, y.shape, generator=chance).to(y) * 2 - 1 for y in felt]
    ways = [y for y in given if y.requires_grad]
    gradients = iter(torch.autograd.grad(felt, ways, signs, allow_unused=True) if ways else ())
    return [next(gradients) if y.requires_grad else None for y in given]
