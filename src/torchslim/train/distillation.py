"""Distillation without labels: original + cut network + unlabelled batches -> the cut network, trained to agree."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.compensation.layerwise import joined_batches
from torchslim.errors import RequestError, TorchslimWarning, TrainingError
from torchslim.train.comparison import Comparison
from torchslim.train.crops import varied
from torchslim.train.optimizers import OptimizerChoice
from torchslim.train.schedule import Schedule
from torchslim.utils.copying import copy_model
from torchslim.utils.data import call_on_batch, list_batches
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, map_tensors, tensors_in, unwrap
from torchslim.utils.modules import device_of
from torchslim.utils.seeding import derive_seed, seeded

LR = 3e-4
WARMUP = 0.1
HELD_BACK, LEAST_HELD_BACK = 0.2, 8
"""Share of the items that are held back, and their least number where there are twice as many."""
GAIN = 0.05
"""Smallest gain, as a share of the distance before: a few items held back do not tell less from chance."""
MEASUREMENTS = 10
"""How often the distance on the items held back is measured."""


@dataclass(frozen=True)
class DistillationProgress:
    """Progress of a distillation: sent after every step.

    Attributes:
        step: steps done.
        steps: number of steps.
        loss: of this step, on crops.
        distance: least distance so far on the items held back: 1 is as much as the original's own features, or
            answers, vary.
    """

    step: int
    steps: int
    loss: float
    distance: float


@torch.inference_mode(False)
def distill(original: nn.Module, slim: nn.Module, data: Iterable[Inputs], *, steps: int = 200, lr: float = LR,
            batch_size: int = 32, seed: int = 0,
            progress: Callable[[DistillationProgress], None] | None = None) -> nn.Module:
    """A copy of a slim network, trained for a short while to agree with the original. No labels.

    What is compared are the features that go into the original's last pooling (where it has none: what the layers read
    that make its outputs), and its outputs, each in mean squared differences over their variance. Where the cut took
    channels of the features, a linear regression maps the others to all of them, once before training (FitNets, Romero
    et al. 2015; Wang et al. 2022, "Compressing models with few samples: mimicking then replacing").

    A few pictures are soon learnt by heart, and weights that agree on these agree less on others. So batches of
    pictures, (B, C, H, W), are seen in strong random crops, mirrored and mixed; batch norms stay in eval mode with
    their statistics; and a fifth of the items is held back: their distance to the original is measured on the way, and
    the weights of the least distance are returned; the given ones where it fell by less than a twentieth. Call it after
    `compensate`.

    Args:
        original: the network before the cut; not changed.
        slim: the network after it, with outputs of the same shapes; not changed.
        data: unlabelled batches of inputs: some hundred pictures that are representative of later ones.
        steps: of training, from 1.
        lr: the highest learning rate of AdamW; it rises over the first tenth and falls along half a cosine.
        batch_size: items in a step. Batches of which the items can't be told apart are kept as they are.
        seed: of what is held back, of the order and the crops; the caller's generators are unchanged.
        progress: called after every step.

    Returns:
        The trained copy, in the mode of `slim` and on its device. Parameters without `requires_grad` stay as they are.

    Raises:
        RequestError: fewer than two items, data that a network fails on, outputs that can't be compared, weights in
            half precision, or an invalid argument.
        TraceError: the original can't be traced.
        TrainingError: a loss that is not finite, at which `error.best` is the best network before; or no parameter
            has `requires_grad`.

    Example:
        >>> import torch, torchslim as ts
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
        >>> batches = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        >>> slim, plan = ts.prune(model, batches[0], macs=0.5)
        >>> better = ts.distill(model, slim, batches, steps=50, lr=0.01)
        >>> error = lambda network: (network(batches[0]) - model(batches[0])).square().mean()
        >>> bool(error(better) < error(slim))
        True
    """
    original, new = unwrap(original), copy_model(unwrap(slim))
    batches = list_batches(data)
    _check(new, steps, lr, batch_size)
    device = device_of(new)
    batches = [map_tensors(lambda tensor: tensor.to(device), batch) for batch in batches]
    with seeded(derive_seed(seed)), _deterministic(new), torch.enable_grad(), evaluating(original, new):
        training, held_back = _divided(original, batches, batch_size)
        comparison = Comparison(original, new, training.batches())
        if comparison.omitted:
            warnings.warn(f"distill: outputs {', '.join(map(str, comparison.omitted))} of the network are not compared"
                          ": they hold no floats, or in an order that depends on values; the rest is",
                          TorchslimWarning, stacklevel=3)  # past the decorator
        _train(new, comparison, training, held_back, _Options(steps, lr, progress))
    return new


# --- the data -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Items:
    """Inputs of a model that are divided along their first dimension, or lists, into items."""

    joined: Inputs
    batch_size: int

    def batches(self, order: Sequence[int] | None = None) -> list[Inputs]:
        """Batches of the items as they are, in their order or another."""
        order = list(range(_count(self.joined) or 0)) if order is None else list(order)
        return [_taken(self.joined, order[start:start + self.batch_size])
                for start in range(0, len(order), self.batch_size)]

    def varied(self) -> Iterator[Inputs]:
        """Batches of equal size in random order, without end; of pictures, crops."""
        count = _count(self.joined) or 0
        while True:
            order = torch.randperm(count).tolist()
            for batch in self.batches(order[:max(count // self.batch_size, 1) * self.batch_size]):
                yield _varied(batch)


@dataclass(frozen=True)
class _Batches:
    """Batches that are kept as they are."""

    whole: list[Inputs]

    def batches(self) -> list[Inputs]:
        """All of them."""
        return self.whole

    def varied(self) -> Iterator[Inputs]:
        """The batches in random order, without end; of pictures, crops."""
        while True:
            for place in torch.randperm(len(self.whole)).tolist():
                yield _varied(self.whole[place])


def _divided(model: nn.Module, batches: list[Inputs], batch_size: int) -> tuple[_Items | _Batches, list[Inputs]]:
    """What is trained on, and batches that are held back."""
    with torch.no_grad():
        call_on_batch(model, batches[0], 0)
        joined = _joined(model, batches)
    count = len(batches) if joined is None else _count(joined) or 0
    if count < 2:
        raise RequestError("distill: data holds one item, which can't be both trained on and held back; give some "
                           "hundred pictures, in one batch or several")
    held = max(round(HELD_BACK * count), min(LEAST_HELD_BACK, count // 2) if joined is not None else 1)
    order = torch.randperm(count).tolist()
    if joined is None:
        return _Batches([batches[place] for place in order[held:]]), [batches[place] for place in order[:held]]
    items = _Items(joined, batch_size)
    return _Items(_taken(joined, order[held:]), batch_size), items.batches(order[:held])


def _joined(model: nn.Module, batches: list[Inputs]) -> Inputs | None:
    """All items as one batch; None if the model may not treat the items of a batch independently."""
    parts = []
    for batch in batches:
        count = _count(batch)
        if count is None:
            return None
        middle = (count + 1) // 2
        parts += [_taken(batch, places) for places in (range(middle), range(middle, count)) if places]
    try:
        return joined_batches(model, [], parts)
    except RequestError:  # on a part: the first dimension is not that of items
        return None


def _count(batch: Inputs) -> int | None:
    """Number of items in a batch; None where its parts disagree."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    if isinstance(batch, list):
        return len(batch)
    parts = batch.values() if isinstance(batch, dict) else batch if type(batch) is tuple else ()
    counts = {_count(part) for part in parts}
    return counts.pop() if len(counts) == 1 else None


def _taken(batch: Inputs, places: Sequence[int]) -> Inputs:
    """Some items of a batch."""
    if isinstance(batch, Tensor):
        return batch[list(places)]
    if isinstance(batch, list):
        return [batch[place] for place in places]
    if isinstance(batch, dict):
        return {key: _taken(part, places) for key, part in batch.items()}
    return tuple(_taken(part, places) for part in batch)


def _varied(batch: Inputs) -> Inputs:
    tensors = list(tensors_in(batch))
    if len(tensors) == 1 and tensors[0].dim() == 4 and tensors[0].is_floating_point():
        return map_tensors(varied, batch)
    return batch


# --- the training -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Options:
    steps: int
    lr: float
    progress: Callable[[DistillationProgress], None] | None


def _train(new: nn.Module, comparison: Comparison, training: _Items | _Batches, held_back: Sequence[Inputs],
           options: _Options) -> None:
    """Train in place, and leave the weights that were nearest on the batches held back."""
    schedule = Schedule(options.lr, warmup=WARMUP)
    optimizer = OptimizerChoice("adamw", weight_decay=0.0).build(new, options.lr)
    weights = [weight for weight in new.parameters() if weight.requires_grad]
    best, least = [weight.detach().clone() for weight in weights], _mean_distance(comparison, new, held_back)
    if not math.isfinite(least):
        raise RequestError("distill: a network gives values that are not finite on the data; look for NaN in the "
                           "batches and the weights")
    enough, interval = (1 - GAIN) * least, -(-options.steps // MEASUREMENTS)
    for step, batch in zip(range(1, options.steps + 1), training.varied(), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate((step - 0.5) / options.steps)
        loss = comparison(new, batch)
        value = float(loss.detach())
        if math.isfinite(value) and value:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if step % interval == 0 or step == options.steps or not math.isfinite(value):
            distance = _mean_distance(comparison, new, held_back) if math.isfinite(value) else value
            if distance < least and distance <= enough:
                best, least = [weight.detach().clone() for weight in weights], distance
            if not math.isfinite(distance):
                _restore(weights, best)
                raise _diverged(step, value, options, new)
        if options.progress is not None:
            options.progress(DistillationProgress(step, options.steps, value, least))
    _restore(weights, best)
    optimizer.zero_grad()


def _diverged(step: int, value: float, options: _Options, best: nn.Module) -> TrainingError:
    error = TrainingError(f"distill: step {step} of {options.steps}: the loss is {value}; try a lower learning rate "
                          f"than lr={options.lr}; error.best is the best network before")
    error.best = best
    return error


def _restore(weights: Sequence[nn.Parameter], best: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, best, strict=True):
            weight.copy_(value)


def _mean_distance(comparison: Comparison, network: nn.Module, batches: Sequence[Inputs]) -> float:
    with torch.no_grad():
        return float(torch.stack([comparison(network, batch, index) for index, batch in enumerate(batches)]).mean())


def _deterministic(network: nn.Module) -> Any:
    """cuDNN without choices by timing; recurrent layers, which it trains in train mode only, without it."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    return torch.backends.cudnn.flags(enabled=not recurrent, benchmark=False, deterministic=True)


def _check(network: nn.Module, steps: int, lr: float, batch_size: int) -> None:
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RequestError(f"distill: {name}={value!r} found, a whole number from 1 wanted; try "
                               f"{200 if name == 'steps' else 32}")
    if not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise RequestError(f"distill: lr={lr!r} found, a number above 0 wanted; try {LR}")
    coarse = next((f"`{name}` has weights of {weight.dtype}" for name, weight in network.named_parameters()
                   if weight.is_floating_point() and weight.dtype.itemsize < 4), None)
    if coarse is not None:
        raise RequestError(f"distill: {coarse}, too coarse for small steps; wanted float32, try slim.float() and "
                           "original.float()")
