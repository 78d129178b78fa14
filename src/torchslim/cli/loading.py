"""The models and data that a command works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchslim.cli.options import PICTURES, shape
from torchslim.cli.output import say
from torchslim.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchslim.zoo.sources import Source


def build_model(source: Source, seed: int, warn: bool = True) -> nn.Module:
    """The model of a source; random weights are drawn from the seed, with a remark unless `warn` is False."""
    import torch

    from torchslim.store.loading import build

    if warn:
        _warn_if_random(source)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(source)


def _warn_if_random(source: Source) -> None:
    """A remark on stderr where a library's network has random weights."""
    if source.kind in ("torchvision", "torchslim", "timm") and not source.options.get("weights"):
        from torchslim.zoo.libraries import has_weights

        trained = "; ?weights=DEFAULT asks for trained ones" if has_weights(source.kind, source.name) else ""
        say(f"note: {source} has random weights{trained}")


def example_inputs(source: Source, shapes: Sequence[str] | None, seed: int = 0, batch: int | None = None) -> Any:
    """Random inputs for a model: of the shapes given, or one image of its usual size; `batch` of them, if asked for.

    Detectors take a list of images without a batch dimension.
    """
    import torch

    from torchslim.store.loading import default_input

    sizes = [shape(text) for text in shapes or []] or [(1, *default_input(source))]
    detector = _is_detector(source)
    if batch is not None:
        sizes = [(batch, *(size if detector and len(size) == 3 else size[1:])) for size in sizes]
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.rand(size, generator=generator) for size in sizes]
    if detector:
        return [image for tensor in tensors for image in (tensor if tensor.ndim == 4 else [tensor])]
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def load_pictures(data: str | None, shapes: Sequence[str] | None, count: int | None,
                  seed: int) -> list[tuple[Tensor, Tensor]] | None:
    """Batches of pictures and their classes, of the size of --input or their own; None without data.

    Raises:
        RequestError: unknown data, an input that is no square picture, or a number of pictures without data.
    """
    from torchslim.train import labelled, load_data

    if data is None:
        if count is not None:
            raise RequestError(f"--pictures {count}: of no data; give --data, such as --data digits, or leave it out")
        return None
    return labelled(load_data(data, size=picture_size(data, shapes), seed=seed), count or PICTURES, seed)


def picture_size(data: str, shapes: Sequence[str] | None) -> int | None:
    """Height and width of the pictures by --input; None for their own.

    Raises:
        RequestError: several inputs, or one that is no square picture.
    """
    sizes = [shape(text) for text in shapes or []]
    if len(sizes) > 1 or any(len(size) != 4 or size[2] != size[3] for size in sizes):
        raise RequestError(f"--data {data}: its pictures are square, one at a time; wanted no --input, or one such as "
                           "1x3x64x64")
    return sizes[0][2] if sizes else None


def _is_detector(source: Source) -> bool:
    from torchslim.zoo.sources import is_library, resolve

    if source.kind == "saved":
        from torchslim.store.header import read_header

        origin = read_header(source.name).source
        return bool(origin) and is_library(str(origin)) and _is_detector(resolve(str(origin)))
    if source.kind != "torchvision":
        return False
    from torchvision import models

    return source.name in models.list_models(module=models.detection)
