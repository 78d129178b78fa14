"""One step of an optimizer: precision, accumulated gradients, clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import RequestError
from torchslim.train.checking import check_fields
from torchslim.utils.inputs import map_tensors

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepOptions:
    """How a step is made.

    Attributes:
        precision: of the layers' arithmetic: "fp32", or "bf16" or "fp16" by torch's autocast; weights, losses and the
            optimizer stay in float32. "fp16" scales the loss, and needs CUDA.
        accumulate: batches whose gradients make one step, each weighted by its number of items. They are in memory at
            once, their activations one batch at a time.
        clip: highest norm of the gradient of all parameters; None for any.
        ema: decay of an exponential average of weights and buffers, which is what is evaluated and what the model holds
            in the end; 0 for none. It rises as min(ema, (1 + steps) / (10 + steps)), so that short trainings forget
            their first weights.
        channels_last: keep pictures and filters in that memory format while training.
        compile: run the forward pass of training through `torch.compile`.
    """

    precision: str = "fp32"
    accumulate: int = 1
    clip: float | None = None
    ema: float = 0.0
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check_fields(self, {
            "precision": (self.precision in PRECISIONS, " or ".join(PRECISIONS)),
            "accumulate": (type(self.accumulate) is int and self.accumulate >= 1, "batches a step, 1 or more; try 4"),
            "clip": (self.clip is None or 0 < self.clip < math.inf, "a norm above 0; try 1.0"),
            "ema": (0 <= self.ema < 1, "a decay from 0 to below 1; try 0.999"),
        })

    def check_device(self, device: torch.device, launched: str) -> None:
        """Check that the precision works there.

        Args:
            device: of the training.
            launched: Accelerate's precision, "no" if its launcher was not given one.

        Raises:
            RequestError: it does not, or the launcher was given one, too.
        """
        if launched != "no" and self.precision != "fp32":
            raise RequestError(f"fit: precision={self.precision!r} found, and Accelerate was started with {launched}; "
                               "give one of them")
        if self.precision == "fp16" and device.type != "cuda":
            raise RequestError(f"fit: precision='fp16' found, which needs CUDA and runs on {device.type} here; try "
                               "precision='bf16'")

    @contextmanager
    def arranging(self, model: nn.Module) -> Iterator[None]:
        """The model's tensors are in the memory format that was asked for inside, and contiguous outside."""
        try:
            if self.channels_last:
                _arrange(model, torch.channels_last)
            yield
        finally:
            if self.channels_last:
                _arrange(model, torch.contiguous_format)

    def arranged(self, tree: Any) -> Any:
        """Inputs in the memory format that was asked for."""
        if not self.channels_last:
            return tree
        return map_tensors(lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t, tree)


def _arrange(model: nn.Module, form: torch.memory_format) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=form)


class LossScale:
    """The scale of a loss whose gradients are in half precision; its state is one tensor."""

    def __init__(self, options: StepOptions) -> None:
        self.scaler: Any = torch.amp.GradScaler("cuda") if options.precision == "fp16" else None

    def state_dict(self) -> dict[str, Tensor]:
        """The scale and the number of steps since it last changed."""
        state = self.scaler.state_dict() if self.scaler else {}
        return {"state": torch.tensor([state["scale"], state["_growth_tracker"]], dtype=torch.float64)} if state else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the state of another."""
        if self.scaler and state:
            scale, steps = state["state"].tolist()
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(steps)})


class Stepper:
    """Steps of one optimizer on gradients of several batches.

    Args:
        options: see there.
        model: as the accelerator prepared it.
        optimizer: of its parameters, as the accelerator prepared it.
        accelerator: Accelerate's.
        scale: of the loss.
    """

    def __init__(self, options: StepOptions, model: nn.Module, optimizer: Any, accelerator: Any,
                 scale: LossScale) -> None:
        self.options, self.model, self.optimizer = options, model, optimizer
        self._accelerator, self._scaler = accelerator, scale.scaler

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass, inside."""
        if self.options.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._accelerator.device.type, PRECISIONS[self.options.precision])

    def in_float32(self, output: Any) -> Any:
        """A model's output for the loss."""
        if self.options.precision == "fp32":
            return output
        return map_tensors(lambda t: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t, output)

    def synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Whether processes exchange the gradients of the batch inside: of the last of a step."""
        return nullcontext() if last else self._accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those there are."""
        self._accelerator.backward(loss if self._scaler is None else self._scaler.scale(loss))

    def step(self) -> None:
        """Change the weights."""
        clip = self.options.clip
        if self._scaler is None:
            if clip is not None:
                self._accelerator.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            return
        optimizer = self.optimizer.optimizer
        self._scaler.unscale_(optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self._scaler.step(optimizer)
        self._scaler.update()


@contextmanager
def synchronised_norms(model: nn.Module, accelerator: Any) -> Iterator[None]:
    """Batch norms take their statistics over all processes inside, where torch's `SyncBatchNorm` runs: not on CPUs.

    The modules stay the same objects, with the same parameters, buffers and hooks.
    """
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    if accelerator.num_processes > 1 and accelerator.device.type in ("cuda", "xpu"):
        changed = [(module, type(module)) for module in model.modules()
                   if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)]
    try:
        for module, _ in changed:
            module.__class__ = nn.SyncBatchNorm
            vars(module)["process_group"] = None  # all processes
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind
            del vars(module)["process_group"]


def grouped(batches: Iterable[Any], count: int) -> Iterator[list[Any]]:
    """Lists of so many batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, count)):
        yield group
