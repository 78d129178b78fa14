"""The models and data that a command works on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torchslim.cli.options import PICTURES, shape
from torchslim.cli.output import say
from torchslim.errors import RequestError, TraceError
from torchslim.utils.text import describe_error, format_shape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchslim.zoo.sources import Source


def build_model(source: Source, seed: int) -> nn.Module:
    """The model of a source; random weights are drawn from the seed."""
    import torch

    from torchslim.store.loading import build

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(source)


def note_random_weights(source: Source) -> None:
    """A remark on stderr where a library's network has random weights; said when the request has turned out good."""
    from torchslim.zoo.libraries import LIBRARIES, has_weights

    if source.kind in LIBRARIES and not any(source.options.get(name) for name in ("weights", "checkpoint")):
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


def load_pictures(source: Source, data: str | None, shapes: Sequence[str] | None, count: int | None,
                  seed: int, skip_broken: float | None = None) -> list[tuple[Tensor, Tensor]] | None:
    """Batches of pictures for a model and their classes, of the size of --input or their own; None without data.

    Raises:
        RequestError: unknown data, an input that is no square picture, or options of pictures without data.
    """
    from torchslim.train import labelled, load_data

    if data is None:
        if count is not None:
            raise RequestError(f"--pictures {count}: of no data; give --data, such as --data digits, or leave it out")
        if skip_broken is not None:
            raise RequestError(f"--skip-broken {skip_broken:g}: of no data; give --data, such as --data folder:PATH, "
                               "or leave it out")
        return None
    size = picture_size(data, shapes)
    pictures = load_data(data, size=size, seed=seed, channels=channels_of_pictures(source, shapes),
                         skip_broken=skip_broken or 0.0)
    return labelled(pictures, count or PICTURES, seed)


def channels_of_pictures(source: Source, shapes: Sequence[str] | None) -> int | None:
    """Channels of the pictures for a model, by --input or the model itself."""
    from torchslim.store.loading import picture_channels

    return shape(shapes[0])[1] if shapes else picture_channels(source)


def picture_size(data: str, shapes: Sequence[str] | None) -> int | None:
    """Height and width of the pictures by --input; None for their own.

    Raises:
        RequestError: several inputs, or one that is no square picture, grey or in colour.
    """
    sizes = [shape(text) for text in shapes or []]
    read = data.partition(":")[0] in ("digits", "folder", "torchvision")  # a factory's may have any channels
    if len(sizes) > 1 or any(len(size) != 4 or size[2] != size[3] or (read and size[1] not in (1, 3))
                             for size in sizes):
        given = " ".join(f"--input {text}" for text in shapes or ())
        raise RequestError(f"{given}: the pictures of --data {data} are square{' and have 1 or 3 channels' * read}, "
                           "one at a time; wanted no --input, or one such as 1x3x64x64")
    return sizes[0][2] if sizes else None


@contextmanager
def named_inputs(source: Source, shapes: Sequence[str] | None) -> Iterator[None]:
    """A model's failure on its inputs, in there, is told with its name and --input."""
    try:
        yield
    except TraceError as error:
        raise _failed(source, shapes, str(error).rpartition("; ")[0] or str(error)) from error


def check_runs(network: nn.Module, inputs: Any, source: Source, shapes: Sequence[str] | None) -> None:
    """Run a model once, before longer work.

    Raises:
        RequestError: it fails on these inputs.
    """
    import torch

    from torchslim.utils.eval_mode import evaluating
    from torchslim.utils.inputs import arguments

    args, kwargs = arguments(inputs)
    try:
        with torch.no_grad(), evaluating(network):
            network(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        raise _failed(source, shapes, describe_error(error)) from error


def _failed(source: Source, shapes: Sequence[str] | None, reason: str) -> RequestError:
    from torchslim.store.loading import default_input

    given = " ".join(f"--input {text}" for text in shapes or ()) or \
        f"an image of {format_shape((1, *default_input(source)))}"
    return RequestError(f"{source}: fails on {given}: {reason}; give a shape that it takes, batch first, such as "
                        "--input 1x3x224x224, and one for each of its inputs")


def _is_detector(source: Source) -> bool:
    from torchslim.zoo.libraries import LIBRARIES
    from torchslim.zoo.sources import is_library, resolve

    if source.kind == "saved":
        from torchslim.store.header import read_header

        origin = read_header(source.name).source
        return bool(origin) and is_library(str(origin)) and _is_detector(resolve(str(origin)))
    return source.kind in LIBRARIES and LIBRARIES[source.kind].is_detector(source.name)
