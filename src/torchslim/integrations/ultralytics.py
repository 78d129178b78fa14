"""Ultralytics' YOLO, cut, and kept as it was cut by its own trainer.

The trainer builds its network anew from a description (yaml) and loads what fits, which silently undoes a cut: the
description holds no widths of single layers. `prune` and `load` give a YOLO whose trainers copy the network instead.

    slim = torchslim.integrations.ultralytics.prune(YOLO("yolo11n.pt"), imgsz=640, macs=0.5)
    slim.train(data="my.yaml", epochs=50)                  # as ever: val, predict and export, too
    YOLO(slim.trainer.best).predict("picture.jpg")         # the file needs no torchslim
    torchslim.integrations.ultralytics.load(slim.trainer.best).train(...)

`detector` gives one that is trained here instead, as torchvision's detectors are.
"""

from __future__ import annotations

from copy import copy, deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from torchslim.errors import MissingExtra, RequestError
from torchslim.planning.options import PlanKeywords
from torchslim.planning.pruning import prune as prune_network
from torchslim.zoo.ultralytics_detector import UltralyticsDetector, as_detector, check_num_classes

try:
    from ultralytics import YOLO
    from ultralytics.engine.model import Model
    from ultralytics.nn.tasks import DetectionModel
except ImportError as error:
    raise MissingExtra("ultralytics", "ultralytics", "torchslim.integrations.ultralytics") from error

_FIRST = "first layer before the cut"
_REBUILT = ("this network was cut by torchslim, and building it anew would undo the cut: train it by "
            "torchslim.integrations.ultralytics.load(path).train(...)")


def prune(yolo: Any, imgsz: int | tuple[int, int] = 640, *, compensate: bool = False,
          **options: Unpack[PlanKeywords]) -> Any:
    """Cut a YOLO; the given one is left as it was.

    What it predicts is kept, which is what it returns in export mode. The maps that it returns beside that in eval mode
    are no reason to keep a channel.

        >>> import torchslim
        >>> from ultralytics import YOLO                                                           # doctest: +SKIP
        >>> slim = torchslim.integrations.ultralytics.prune(YOLO("yolo11n.yaml"), macs=0.5)        # doctest: +SKIP
        >>> slim.plan.budgets[0].share <= 0.5                                                      # doctest: +SKIP
        True

    Args:
        yolo: an `ultralytics.YOLO` of any task, or another of its models with a PyTorch network.
        imgsz: the side of the pictures, or their height and width, for which costs are counted.
        compensate: see `torchslim.prune`; its `data` are batches of pictures as the network takes them.
        options: those of `torchslim.plan`.

    Returns:
        An object of the same class, with the cut network as `.model` and the plan as `.plan`. Its `train`, `val`,
        `predict`, `export`, `save` and a file loaded by `load` keep the widths.

    Raises:
        RequestError: it holds no PyTorch network; `imgsz` is no size that its strides divide; or see `torchslim.plan`.
        BudgetError, ProofError, TraceError: see `torchslim.prune`.
    """
    network = _network(yolo)
    picture = torch.rand(1, network.yaml.get("channels", 3), *_size(imgsz, network))
    options.setdefault("outputs", _predictions)
    slim, plan = prune_network(network.float(), picture, compensate=compensate, **options)
    for parameter in slim.parameters():
        parameter.requires_grad = parameter.is_floating_point()
    return _keeping(yolo, slim, plan)


def load(path: str | Path) -> Any:
    """A YOLO from a checkpoint whose trainers keep its widths.

    Raises:
        RequestError: there is no such file.
    """
    if not Path(path).is_file():
        raise RequestError(f"integrations.ultralytics.load: {path}: no such file; give a checkpoint such as best.pt")
    yolo = YOLO(str(path))
    return _keeping(yolo, _network(yolo), None)


def detector(yolo: Any, num_classes: int | None = None) -> UltralyticsDetector:
    """A detector that `torchslim.fit`, `evaluate` and the command line take, as they take torchvision's.

    Called with a list of pictures, and of targets in train mode, it gives its losses, or in eval mode boxes, labels and
    scores. With a tensor it is the network that it was.

        >>> from ultralytics import YOLO                                                           # doctest: +SKIP
        >>> def net(num_classes):                          # torchslim slim mine.py:net --data ... # doctest: +SKIP
        ...     return torchslim.integrations.ultralytics.detector(YOLO("yolo11n.pt"), num_classes)

    Args:
        yolo: a YOLO, or its network; it stays as it was.
        num_classes: with the background, as torchvision counts them, so one more than there are names. Where the given
            one finds others, its head gets new last layers. None leaves them.

    Raises:
        RequestError: no detector of boxes, one that is fused for inference, or fewer than two classes.
    """
    check_num_classes(num_classes)
    model = as_detector(_network(yolo) if isinstance(yolo, Model) else yolo)
    classes = model.model[-1].nc if num_classes is None else num_classes - 1
    if classes != model.model[-1].nc:
        described = _as_described(model.yaml)
        before, wanted = (DetectionModel({**described, "nc": count}, ch=described.get("channels", 3), verbose=False)
                          for count in (model.model[-1].nc, classes))
        _end_alike(model.model[-1], before.model[-1], wanted.model[-1])
        model.yaml["nc"], model.names = classes, wanted.names
    return model


def _network(yolo: Any) -> Any:
    network = getattr(yolo, "model", None)
    if not isinstance(yolo, Model) or not isinstance(network, nn.Module):
        inside = f" of {type(network).__name__}" if isinstance(yolo, Model) else ""
        raise RequestError(f"integrations.ultralytics: got {type(yolo).__name__}{inside}, wanted a YOLO with a PyTorch "
                           "network, such as YOLO('yolo11n.pt'); exported files can't be cut")
    return network


def _size(imgsz: int | tuple[int, int], network: Any) -> tuple[int, int]:
    size = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
    stride = int(max(getattr(network, "stride", torch.ones(1))))
    if len(size) != 2 or any(side < stride or side % stride for side in size):
        raise RequestError(f"imgsz: got {imgsz!r}, wanted a side, or height and width, that {stride} divides, such as "
                           "640")
    return size[0], size[1]


def _predictions(output: Any) -> Any:
    """What export mode returns, of what eval mode does: the rest is for losses."""
    return output[0] if isinstance(output, tuple) else output


def _keeping(yolo: Any, network: nn.Module, plan: Any) -> Any:
    """A YOLO like the given one, around another network, whose trainers keep its widths."""
    slim: Any = object.__new__(_with_trainers(yolo.__class__))
    slim.__dict__ |= {name: copy(item) if isinstance(item, dict) else item for name, item in vars(yolo).items()}
    slim.model, slim.plan = network, plan
    slim.predictor = slim.trainer = None
    slim.ckpt = slim.ckpt or {"epoch": -1}  # without one the trainer would not be handed the network
    network.yaml = _not_to_be_rebuilt(network.yaml)  # type: ignore[assignment, arg-type]
    return slim


def _not_to_be_rebuilt(description: dict[str, Any]) -> dict[str, Any]:
    """A network's description in which the first layer is none: what builds it ends with the reason, not undone."""
    description = deepcopy(description)
    first = description["backbone"][0]
    if first[2] != _REBUILT:
        description[_FIRST], first[2] = first[2], _REBUILT
    return description


def _as_described(description: dict[str, Any]) -> dict[str, Any]:
    """The description of the uncut network."""
    description = deepcopy(description)
    description["backbone"][0][2] = description.pop(_FIRST, description["backbone"][0][2])
    return description


@cache
def _with_trainers(kind: Any) -> Any:
    """The class of models with trainers that keep widths, under the name that it had."""
    if hasattr(kind, "_keeps_widths"):
        return kind

    def task_map(self: Any) -> dict[str, dict[str, Any]]:
        tasks = kind.task_map.fget(self)
        return {task: {**parts, "trainer": keeping_widths(parts["trainer"])} for task, parts in tasks.items()}

    return type(kind.__name__, (kind,), {"task_map": property(task_map), "_keeps_widths": True,
                                         "__module__": kind.__module__, "__doc__": kind.__doc__})


@cache
def keeping_widths(trainer: Any) -> Any:
    """A trainer that trains a copy of the network that it is given, as `YOLO(path).train(trainer=...)` takes it.

        trainer = keeping_widths(ultralytics.models.yolo.detect.DetectionTrainer)
    """
    return type(f"Slim{trainer.__name__}", (_KeepsWidths, trainer), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """`SlimDetectionTrainer` and its like by name: processes of a distributed training import them."""
    if name.startswith("Slim") and name.endswith("Trainer"):
        for parts in YOLO.task_map.fget(object.__new__(YOLO)).values():
            if parts["trainer"].__name__ == name.removeprefix("Slim"):
                return keeping_widths(parts["trainer"])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _KeepsWidths:
    """What a trainer does otherwise: the network is copied, not built."""

    args: Any

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """A copy of the given network, whose head ends as one that is built for the data: as many classes and points.

        Raises:
            RequestError: there is no network.
        """
        if weights is None:
            raise RequestError("train: a cut network can't be built anew, as pretrained=False asks for; leave it out, "
                               "and give the slim YOLO or its checkpoint")
        model: Any = deepcopy(weights).float()
        described = _as_described(model.yaml)
        channels = described.get("channels", 3)
        fitting: Any = super().get_model(cfg=deepcopy(described), weights=None, verbose=False)  # type: ignore[misc]
        _end_alike(model.model[-1], type(model)(deepcopy(described), ch=channels, verbose=False).model[-1],
                   fitting.model[-1])
        model.yaml |= {name: fitting.yaml[name] for name in ("nc", "kpt_shape") if name in fitting.yaml}
        model.names = fitting.names
        for module in model.modules():
            if isinstance(module, nn.Dropout) and self.args.dropout:
                module.p = self.args.dropout
        for parameter in model.parameters():
            parameter.requires_grad = True
        return model  # type: ignore[no-any-return]


def _end_alike(head: nn.Module, before: nn.Module, wanted: nn.Module) -> None:
    """Give a cut head new last layers where an uncut one for the data has others.

    Args:
        head: the cut one, which is changed.
        before: as it was before the cut.
        wanted: for the data. Its hidden layers, those with a norm behind them, may have other widths, too; these stay.
    """
    layers = dict(wanted.named_modules())
    for name, layer in before.named_modules():
        owner, _, key = name.rpartition(".")
        if type(layer) not in _ENDS or hasattr(before.get_submodule(owner), "bn"):
            continue
        new = layers[name]
        if layer.weight.shape[0] != new.weight.shape[0]:
            setattr(head.get_submodule(owner), key, _reading_as(head.get_submodule(name), new))
    for attribute, value in vars(wanted).items():  # numbers of classes, of points and of all that follows from them
        if isinstance(value, int | list | tuple) and value != getattr(before, attribute):
            setattr(head, attribute, value)


_ENDS = (nn.Conv2d, nn.Linear, nn.Embedding)


def _reading_as(cut: Any, new: Any) -> nn.Module:
    """A layer with the outputs, and the first biases, of a new one, that reads what a cut one does."""
    if isinstance(new, nn.Embedding):
        return nn.Embedding(new.num_embeddings, cut.embedding_dim)
    layer: Any = (nn.Linear(cut.in_features, new.out_features, new.bias is not None) if isinstance(new, nn.Linear) else
                  nn.Conv2d(cut.in_channels, new.out_channels, new.kernel_size, new.stride, new.padding, new.dilation,
                            new.groups, new.bias is not None))
    if new.bias is not None:
        layer.bias.data.copy_(new.bias.data)  # of classes that are rare, say
    return layer  # type: ignore[no-any-return]
