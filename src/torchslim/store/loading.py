"""Models from what names them, saved ones too: rebuilt from their source, cut again by their steps, then filled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from torchslim.errors import CheckpointError, PlanError, RequestError
from torchslim.rewriting import apply_step
from torchslim.store.attributes import PREFIX, fill_attributes
from torchslim.store.header import Header, digest, parse_header, read_header, unreadable
from torchslim.utils.copying import copy_model
from torchslim.utils.inputs import unwrap
from torchslim.utils.text import describe_error, format_shape
from torchslim.zoo.libraries import LIBRARIES
from torchslim.zoo.sources import Source, build_source, is_library, resolve


def load(path: str | Path, model: nn.Module | None = None, *, trust_source: bool = False) -> nn.Module:
    """The model that `save` wrote, in eval mode, on the CPU unless `model` is elsewhere.

    Nothing is downloaded: the original is rebuilt with random weights, which the stored ones replace.

    Args:
        path: the file.
        model: the original, built by the caller, in place of the file's source; it stays as it is.
        trust_source: allow a source that is a factory in a module or a file, whose code then runs.

    Raises:
        CheckpointError: the file is missing, damaged, no torchslim file, or made for another model.
        RequestError: the file has no source, or one that is code and not trusted, and `model` was not given.
    """
    path = Path(path)
    header, tensors = _read(path)
    rebuilt = _rebuild(path, header.source, trust_source) if model is None else unwrap(model)
    slim = copy_model(rebuilt) if model is not None and not header.steps else rebuilt
    try:
        for step in header.steps:
            slim = apply_step(slim, step)
    except PlanError as error:
        raise CheckpointError(f"{path}: its plan does not fit {_name(header, model)}: {error}") from error
    attributes = {name: tensors.pop(name) for name in list(tensors) if name.startswith(PREFIX)}
    every = {**tensors, **{name: tensors[stored] for name, stored in header.aliases.items()}}
    _compare(path, slim, every, _name(header, model))
    _fill(path, slim, every, header.buffers)
    if wrong := fill_attributes(slim, attributes):
        raise CheckpointError(f"{path}: made for another model than {_name(header, model)}: {', '.join(wrong)} holds "
                              "another number of tensors; rebuild the original with the options it had")
    return slim.eval()


def build(spec: str | Path | Source, **overrides: Any) -> nn.Module:
    """The model that a specification names; `overrides` take precedence over the specification's options.

    A saved slim model's only option is `trust_source` (see `torchslim.load`).

    Raises:
        RequestError: an unknown name, an option that the builder refuses, a factory that fails or returns no
            module.
        TorchslimError: weights were asked for and could not be fetched.
        CheckpointError: the saved slim model can't be read.
    """
    source = resolve(spec)
    options = {**source.options, **overrides}
    if source.kind != "saved":
        return build_source(source, **overrides)
    for name, value in options.items():
        if name != "trust_source" or not isinstance(value, bool):
            raise RequestError(f"{source}: option {name}={value!r} found; a saved slim model has its architecture and "
                               "weights, and takes no option but trust_source=True")
    return load(source.name, **options)


def default_input(spec: str | Path | Source) -> tuple[int, int, int]:
    """Channels, height and width of the image a model is usually given: 3x224x224 unless its library differs.

    The options `img_size`, `image_size`, `in_chans` and `in_channels` are respected.

    Raises:
        RequestError: an unknown name, or one of these options that is no number of pixels or channels.
        CheckpointError: a saved slim model whose header can't be read.
    """
    source = resolve(spec)
    if source.kind == "saved":
        origin = read_header(source.name).source
        return default_input(origin) if origin and is_library(origin) else (3, 224, 224)
    channels, height, width = 3, 224, 224
    if source.kind in LIBRARIES:
        channels, height, width = LIBRARIES[source.kind].input_size(source.name)
    for name in ("image_size", "img_size", "in_channels", "in_chans"):
        value = source.options.get(name)
        if value is None:
            continue
        of_image = name.startswith("im")
        sizes = value if of_image and isinstance(value, tuple | list) and len(value) == 2 else (value,)
        if not all(type(size) is int and size > 0 for size in sizes):
            raise RequestError(f"{source}: {name}={value!r} found, a whole number above 0 wanted, such as "
                               f"{name}={224 if of_image else 3}")
        if of_image:
            height, width = sizes[0], sizes[-1]
        else:
            channels = value
    return channels, height, width


def picture_channels(spec: str | Path | Source) -> int | None:
    """Channels of the pictures that a model reads; None where neither its library, its options nor its layers tell.

    The code of a factory runs. Its first convolution tells grey pictures; of more channels it may read features.

    Raises:
        As `build`.
    """
    source = resolve(spec)
    channels = default_input(source)[0]
    if channels != 3 or source.kind in LIBRARIES:
        return channels
    with torch.random.fork_rng(devices=[]):
        convolutions = (layer for layer in build(source).modules() if isinstance(layer, nn.Conv2d))
        first = next(convolutions, None)
    return 1 if first is not None and first.in_channels == 1 else None


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_header(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            intact = digest(tensors) == header.digest and set(header.aliases.values()) <= set(tensors)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
    if not intact:
        raise CheckpointError(f"{path}: its tensors are not the ones that were written (checksums differ); "
                              "the file is damaged, take another copy")
    return header, tensors


def _rebuild(path: Path, source: str | None, trust: bool) -> nn.Module:
    if source is None:
        raise RequestError(f"{path}: says not where its architecture comes from; load it with model=ORIGINAL")
    if not is_library(source) and not trust:
        raise RequestError(f"{path}: its source {source!r} is code, which would run; give trust_source=True "
                           f"if you trust it (command line: {path}?trust_source=True), or model=ORIGINAL")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay the same
        return build(resolve(source).without_weights())


def _compare(path: Path, slim: nn.Module, stored: Mapping[str, Tensor], what: str) -> None:
    wanted = slim.state_dict()
    stored_shapes = {name: (format_shape(stored[name].shape) if name in stored else "nothing",
                    format_shape(wanted[name].shape) if name in wanted else "nothing")
             for name in dict.fromkeys([*wanted, *stored])}
    wrong = [f"{name}: {mine} in the file, {theirs} in the model"
             for name, (mine, theirs) in stored_shapes.items() if mine != theirs]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path}: made for another model than {what}: {'; '.join(wrong[:3])}{more}; "
                              "rebuild the original with the options it had")


def _fill(path: Path, slim: nn.Module, stored: Mapping[str, Tensor],
          buffers: Mapping[str, str]) -> None:
    """Copy the stored values into the model, whose tensors take the stored dtypes.

    The copy matters: tensors mapped from a file are not aligned as torch's own are, and compute slightly
    different sums.
    """
    dtypes = {**{name: tensor.dtype for name, tensor in stored.items()},
              **{name: getattr(torch, dtype) for name, dtype in buffers.items()}}
    for name, target in [*slim.named_parameters(remove_duplicate=False),
                         *slim.named_buffers(remove_duplicate=False)]:
        if target.is_meta:
            raise RequestError(f"{path}: cannot be loaded into {name}, which is on the meta device; "
                               "build the model on the CPU")
        if target.dtype != dtypes.get(name, target.dtype):
            target.data = target.data.to(dtypes[name])
    try:
        slim.load_state_dict(dict(stored), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the model refused its tensors: {describe_error(error)}") from error


def _name(header: Header, model: nn.Module | None) -> str:
    return f"its source {header.source}" if model is None else f"the given {type(model).__name__}"
