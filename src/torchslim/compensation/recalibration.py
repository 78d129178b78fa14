"""Networks that run in lockstep, and a copy of one whose norms are settled on some batches.

On few pictures many channels are silent that speak on others: what such pictures alone would call useless. In the
settled copy every norm gives each channel the mean and variance that it has in training, so that none is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import BrokenBarrierError, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchslim.compensation.lockstep import Arrive, OutOfStep, lockstep
from torchslim.compensation.moments import Tally
from torchslim.errors import RequestError, TraceError
from torchslim.utils.copying import copy_model
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import Inputs, call_on_batch

Watched = Callable[[Arrive], None]
"""Says which run the current thread makes."""


@contextmanager
def arriving(network: nn.Module, names: Sequence[str], *, inside: bool) -> Iterator[Watched]:
    """Hooks by which a network's runs arrive at layers: with what a layer reads, before it runs, or what it gave."""
    own: dict[int, Arrive] = {}

    def before(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            own[get_ident()](name, next(iter((*args, *kwargs.values()))))
        return hook

    def after(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            own[get_ident()](name, output)
        return hook

    handles = [network.get_submodule(name).register_forward_pre_hook(before(name), with_kwargs=True) if inside
               else network.get_submodule(name).register_forward_hook(after(name)) for name in names]
    try:
        yield lambda arrive: own.__setitem__(get_ident(), arrive)
    finally:
        for handle in handles:
            handle.remove()


def together(watched: Sequence[tuple[Watched, nn.Module]], batches: Sequence[Inputs],
             meet: Callable[[str, list[Any]], None]) -> None:
    """Run networks that are watched, each on all batches; `meet` is called wherever all of them have arrived.

    Raises:
        RequestError: a network fails on a batch.
        TraceError: one does not run the same layers as the others.
    """
    def run(watch: Watched, network: nn.Module, place: int) -> Callable[[Arrive], None]:
        def call(arrive: Arrive) -> None:
            watch(arrive)
            try:
                call_on_batch(network, batches[place], place)
            except RequestError as error:
                if isinstance(error.__cause__, BrokenBarrierError):  # another run has failed, and says why
                    raise error.__cause__ from None
                raise
        return call

    try:
        lockstep([run(watch, network, place) for watch, network in watched for place in range(len(batches))], meet)
    except OutOfStep as error:
        raise TraceError(f"data: the model does not run the same layers on every batch ({error}); give batches on "
                         "which it does") from error


@torch.no_grad()
def settled(model: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
    """A copy whose batch norms have the statistics of these batches, each as what the ones before it give.

    A norm that runs several times, or not at all, stays as it is.

    Raises:
        RequestError: the model fails on a batch.
        TraceError: it runs other norms on one than on another.
    """
    copy = copy_model(model)
    norms = [name for name, module in copy.named_modules() if counts(module)]
    calls = calls_of(copy, norms, batches[0])

    def meet(name: str, brought: list[Tensor]) -> None:
        norm: Any = copy.get_submodule(name)
        tally = Tally()
        for x in brought:
            tally.add(x)
        if tally.count > 1:
            mean, var = tally.moments
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)

    with evaluating(copy), arriving(copy, [name for name in calls if calls[name] == 1], inside=True) as watched:
        together([(watched, copy)], batches, meet)
    return copy


def counts(module: nn.Module) -> bool:
    """Whether a module is a batch norm with running statistics."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def calls_of(model: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, int]:
    """How often each of these modules is called, in the order of their first calls."""
    order: list[str] = []
    handles = [model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.append(name))
               for name in names]
    try:
        with evaluating(model), torch.no_grad():
            call_on_batch(model, inputs, 0)
    finally:
        for handle in handles:
            handle.remove()
    return dict(Counter(order))
