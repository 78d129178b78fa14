"""What cut networks are held against: labels, or what the whole network gave on the same batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchslim.errors import RequestError
from torchslim.planning.sensitivity.result import MEASURES
from torchslim.utils.data import Data, call_on_batch, describe, iterate_batches
from torchslim.utils.eval_mode import evaluating
from torchslim.utils.inputs import map_tensors, tensors_in
from torchslim.utils.modules import device_of
from torchslim.utils.seeding import seeded

TINY = torch.finfo(torch.float64).tiny


class OutputMetric:
    """Measures networks of one kind on one set of batches.

    Args:
        model: the whole network; it runs once, here.
        data: batches that can be iterated over again and again (see `batches_in`).
        measure: see `Sensitivity`; None to go by the data and the outputs.

    Attributes:
        measure: which it is.
        base: what the whole network has.
        items: answers that are compared.
        digest: of all inputs and targets.

    Raises:
        RequestError: no batch, batches that can be read once only, batches or outputs that do not suit the measure.
    """

    def __init__(self, model: nn.Module, data: Iterable[Any], measure: str | None) -> None:
        if measure is not None and measure not in MEASURES:
            raise RequestError(f"measure: got {measure!r}, wanted one of {', '.join(MEASURES)}, or None to go by the "
                               "data")
        self._data = data
        self.measure = measure or ""
        self.items = self._right = 0
        self._answers: list[list[Tensor]] = []
        digest = hashlib.sha256()
        for index, (inputs, targets, outputs) in enumerate(self._runs(model)):
            self.measure = self.measure or _suitable(targets, outputs)
            # A class that is ruled out may score minus infinity; no difference to that can be told.
            if any(bool((output.isnan() | (output.isinf() & (self.measure == "error"))).any()) for output in outputs):
                raise RequestError(f"data: the model gives values that are not finite on batch {index}, with which "
                                   "nothing can be compared; look for NaN in the batches and the weights")
            digest.update(str(index).encode())
            for tensor in tensors_in((inputs, targets)):
                update(digest, tensor)
            self._note(targets, outputs, index)
        if not self._answers:
            raise RequestError("data: no batch in it; wanted batches such as [(images, classes)]")
        self.digest = digest.hexdigest()
        self.base = self._right / self.items if self.measure == "accuracy" else float(self.measure == "agreement")

    def __call__(self, model: nn.Module) -> float:
        """The measure of a network that takes the same inputs."""
        right, wrong, total = 0, 0.0, 0.0
        for index, (_, _, outputs) in enumerate(self._runs(model)):
            wanted = self._answers[index]
            if self.measure == "error":
                for tensor, old in zip(outputs, wanted, strict=True):
                    wrong += float((tensor.double() - old.double()).square().sum())
                    total += float(old.double().square().sum())
            else:
                right += int((_answer(outputs, index) == wanted[0]).sum())
        return (wrong / max(total, TINY))**0.5 if self.measure == "error" else right / self.items

    def _note(self, targets: Any, outputs: list[Tensor], index: int) -> None:
        """Remember what a batch's answers should be."""
        if self.measure == "error":
            self._answers.append([tensor.clone() for tensor in outputs])
            self.items += len(outputs[0]) if outputs[0].dim() else 1
            return
        answer = _answer(outputs, index)
        if self.measure == "accuracy":
            if targets is None:
                raise RequestError(f"data: batch {index} has no labels, and accuracy asks for them; give (inputs, "
                                   "classes), or measure='agreement', which needs none")
            if targets.shape != answer.shape:
                raise RequestError(f"data: batch {index} has targets of shape {tuple(targets.shape)}, the model gives "
                                   f"answers of shape {tuple(answer.shape)}; wanted one class for each")
            if targets.numel() and not 0 <= int(targets.max()) < outputs[0].shape[1]:
                raise RequestError(f"data: batch {index} has class {int(targets.max())}, the model scores "
                                   f"{outputs[0].shape[1]} classes; give a model of the data's classes, or "
                                   "measure='agreement', which needs no labels")
            self._right += int((answer == targets).sum())
            answer = targets
        self._answers.append([answer])
        self.items += answer.numel()

    def _runs(self, model: nn.Module) -> Iterator[tuple[Any, Any, list[Tensor]]]:
        """Inputs, targets (None without) and outputs of each batch, all where the model is."""
        device = device_of(model)
        with torch.inference_mode(), evaluating(model), seeded(0):
            for index, batch in enumerate(self._data):
                moved = map_tensors(lambda tensor: tensor.to(device), batch)
                inputs, targets = moved if is_labelled(moved) else (moved, None)
                outputs = list(tensors_in(call_on_batch(model, inputs, index)))
                if not outputs:
                    raise RequestError(f"data: the model gives no tensor on batch {index}; nothing can be compared")
                yield inputs, targets, outputs


def batches_in(data: Any) -> Iterable[Any]:
    """Batches of a dataset, of a `Data` (its held-out part), or as they come.

    Raises:
        RequestError: it is something else, or can be read once only.
    """
    if isinstance(data, Data):
        data = data.test
    if isinstance(data, Iterator):
        raise RequestError(f"data: got {describe(data)}, wanted batches that can be gone through many times; try "
                           "[(images, classes)], a DataLoader or a dataset")
    return iterate_batches(data, "batches of inputs, or of (inputs, classes)")


def update(digest: Any, tensor: Tensor) -> None:
    """Add a tensor's kind, shape and bytes to a checksum."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def is_labelled(batch: Any) -> bool:
    """A pair of which the second is integers, which no picture is."""
    return (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)
            and not batch[1].is_floating_point() and batch[1].dtype is not torch.bool)


def _suitable(targets: Any, outputs: list[Tensor]) -> str:
    if targets is not None:
        return "accuracy"
    return "agreement" if outputs[0].dim() == 2 and outputs[0].shape[1] > 1 else "error"


def _answer(outputs: list[Tensor], index: int) -> Tensor:
    """The class with the highest score, of each item or each place of it."""
    if outputs[0].dim() < 2:
        raise RequestError(f"data: the model gives shape {tuple(outputs[0].shape)} on batch {index}, which are no "
                           "scores of classes; measure='error' compares any outputs")
    return outputs[0].argmax(dim=1)
