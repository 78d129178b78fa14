"""Models by specification: a library's name, a factory in a module or a file, a saved slim model.

A specification is a name with options after a question mark:

    torchvision:resnet18?num_classes=10&weights=DEFAULT      torchslim:NAME      timm:NAME      a bare NAME
    package.module:factory      file.py:factory?depth=3      slim.safetensors

A bare name is looked up in our zoo, torchvision and timm. Weights are random by default.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from torch import nn

from torchslim.errors import MissingExtra, RequestError, TorchslimError
from torchslim.utils.importing import import_factory, import_path
from torchslim.utils.text import describe_error
from torchslim.zoo.libraries import LIBRARIES, WEIGHT_OPTIONS

SAVED_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Source:
    """The origin of a model; `str()` gives its specification.

    Attributes:
        kind: a library (`torchslim`, `torchvision`, `timm`), `module` or `file` (a factory), or `saved` (a file).
        name: the model's name, `package.module:factory`, `file.py:factory`, or the path.
        options: keyword arguments of the builder.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"{self.kind}:{self.name}" if self.kind in LIBRARIES else self.name
        pairs = (f"{_quoted(key)}={_quoted(_value_text(value))}" for key, value in self.options.items())
        return "?".join(filter(None, (head, "&".join(pairs))))

    @property
    def is_code(self) -> bool:
        """Whether building the model runs code other than a library's."""
        return self.kind in ("module", "file")

    def with_defaults(self, **defaults: Any) -> Source:
        """The source with defaults for unset options; a factory gets only those its signature accepts.

        A saved slim model gets none, since its architecture is fixed.

        Raises:
            RequestError: the factory can't be imported.
        """
        missing = {key: value for key, value in defaults.items() if key not in self.options}
        if self.kind == "saved" or not missing:
            return self
        if self.is_code:
            factory = _factory(self)
            missing = {key: value for key, value in missing.items() if _accepts(factory, key)}
        return replace(self, options={**self.options, **missing})

    def without_weights(self) -> Source:
        """The same architecture with random weights, built without downloads or files."""
        kept = {key: value for key, value in self.options.items() if key not in WEIGHT_OPTIONS}
        return replace(self, options=kept)


def resolve(spec: str | Path | Source) -> Source:
    """The source that a specification names.

    Raises:
        RequestError: an unknown name (with close matches), a malformed option, a missing file.
    """
    if isinstance(spec, Source):
        return spec
    text = str(spec)
    head, _, tail = text.partition("?")
    options = _parse_options(tail, text)
    prefix, _, name = head.partition(":")
    if prefix in LIBRARIES and name:
        return Source(prefix, _check_name(prefix, name), options)
    if head.endswith(SAVED_SUFFIX):
        return Source("saved", _check_file(head), options)
    path, _, factory = head.rpartition(":")
    if path.endswith(".py") and factory:
        return Source("file", f"{_check_file(path)}:{factory}", options)
    if re.fullmatch(r"[\w.]+:[\w.]+", head):
        return Source("module", head, options)
    if not head or "/" in head or Path(head).suffix in (".pt", ".pth", ".py", ".ckpt", ".onnx", ".pt2"):
        raise RequestError(f"{text!r}: names no model; give torchslim:NAME, torchvision:NAME, timm:NAME, "
                           "package.module:factory, file.py:factory or the path of a saved slim model "
                           f"(*{SAVED_SUFFIX})")
    return Source(_library_of(head), head, options)


def build_source(source: Source, **overrides: Any) -> nn.Module:
    """The model of a library or a factory; `overrides` take precedence over the source's options.

    Raises:
        RequestError: an option that the builder refuses, a factory that fails or returns no module.
        TorchslimError: requested weights could not be fetched.
    """
    options = {**source.options, **overrides}
    if source.kind in LIBRARIES:
        return create_model(f"{source.kind}:{source.name}", **options)
    factory = _factory(source)
    try:
        with import_path(source.name):
            model = factory(**options)
    except Exception as error:
        raise RequestError(f"{source}: the factory failed: {describe_error(error)}") from error
    if not isinstance(model, nn.Module):
        raise RequestError(f"{source}: the factory returned a {type(model).__name__}, "
                           "wanted a torch.nn.Module")
    return model


def is_library(spec: str) -> bool:
    """Whether a specification begins with a library: building it runs only that library's code."""
    return spec.partition("?")[0].partition(":")[0] in LIBRARIES


def create_model(name: str, *, weights: str | None = None, **options: Any) -> nn.Module:
    """A model by name, from our zoo, torchvision or timm, in this order, or after a prefix such as `timm:`.

    Args:
        name: see `list_models`.
        weights: None for random weights, "DEFAULT" for the library's, or a name ("IMAGENET1K_V1"). Our networks
            with a torchvision counterpart take its weights. With another `num_classes` than that of the weights, the
            layers that depend on it stay random.
        options: passed to the library's builder (`num_classes=10`, `width=0.5`, ...).

    Raises:
        RequestError: an unknown name (with close matches), or an option that the builder refuses.
        MissingExtra: a name of timm's, which is not installed.
        TorchslimError: the weights could not be fetched.
    """
    kind, _, rest = name.partition(":")
    if kind not in LIBRARIES or not rest:
        kind, rest = _library_of(name), name
    where = f"{kind}:{_check_name(kind, rest)}"
    try:
        return LIBRARIES[kind].build(rest, weights, options)
    except TorchslimError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or (weights is not None and isinstance(error, RuntimeError)):
            raise TorchslimError(f"{where}: the weights could not be fetched: {describe_error(error)}; "
                                 "try again, or weights=None for random ones") from error
        given = {"weights": weights, **options} if weights is not None else options
        shown = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "no options"
        raise RequestError(f"{where}: the builder refused {shown}: {describe_error(error)}") from error


def list_models(pattern: str = "*") -> list[str]:
    """The names for `create_model` that match a shell-style pattern, sorted.

    A name that an earlier library has too gets its library as a prefix: `torchvision:mobilenet_v2`, `timm:resnet18`. A
    pattern that begins with a library (`torchslim:*`) matches that one's names, with the prefix.
    """
    prefix = pattern.partition(":")[0]
    if prefix in LIBRARIES and ":" in pattern:
        return sorted(name for name in (f"{prefix}:{model}" for model in LIBRARIES[prefix].names())
                      if fnmatchcase(name, pattern))
    seen: set[str] = set()
    names: list[str] = []
    for kind, library in LIBRARIES.items():
        library_names = library.names()
        names += [f"{kind}:{name}" if name in seen else name for name in library_names]
        seen.update(library_names)
    return sorted(name for name in names if fnmatchcase(name, pattern))


def _check_name(kind: str, name: str) -> str:
    if not LIBRARIES[kind].has(name):
        raise _unknown_name(f"{kind}:{name}", name, LIBRARIES[kind].names())
    return name


def _library_of(name: str) -> str:
    for kind, library in LIBRARIES.items():
        with suppress(MissingExtra):
            if library.has(name):
                return kind
    raise _unknown_name(name, name, list_models())


def _unknown_name(where: str, name: str, names: list[str]) -> RequestError:
    if "?" in name:
        return RequestError(f"{where}: options found behind a name, keywords wanted, such as "
                            "create_model('mobilenet_v1', width=0.5); `torchslim.store.loading.build` reads both")
    close = get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`torchslim models` lists the names"
    extra = "" if find_spec("timm") else " (timm's names need pip install 'torchslim[timm]')"
    return RequestError(f"{where}: no model of that name; {hint}{extra}")


def _factory(source: Source) -> Callable[..., Any]:
    try:
        factory = import_factory(source.name)
    except Exception as error:
        raise RequestError(f"{source}: could not be imported: {describe_error(error)}") from error
    if not callable(factory) or isinstance(factory, nn.Module):
        raise RequestError(f"{source}: {source.name.rpartition(':')[2]} is a {type(factory).__name__}, "
                           "wanted a function or class that makes a torch.nn.Module")
    checked: Callable[..., Any] = factory
    return checked


def _accepts(factory: Callable[..., Any], option: str) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    named = option in parameters and parameters[option].kind is not inspect.Parameter.POSITIONAL_ONLY
    return named or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _parse_options(text: str, spec: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in filter(None, text.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or key in options:
            raise RequestError(f"{spec}: option {pair!r} found, NAME=VALUE wanted, each name once; "
                               "try torchvision:resnet18?num_classes=10&weights=DEFAULT")
        options[key] = _parse_value(unquote(value))
    return options


def _parse_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) and _parse_value(value) == value else repr(value)


def _quoted(text: str) -> str:
    return quote(text, safe=" !\"'()*+,/:;<=>?@[]^`{|}~")


def _check_file(path: str) -> str:
    if not Path(path).is_file():
        raise RequestError(f"{path}: no such file; give the path of an existing one")
    return path
