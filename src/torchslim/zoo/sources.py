"""Models by specification: a library's name, a factory in a module or a file, a saved slim model.

A specification is a name with options after a question mark:

    torchvision:resnet18?num_classes=10&weights=DEFAULT      torchslim:NAME  timm:NAME  ultralytics:NAME.yaml  NAME
    package.module:factory      file.py:factory?depth=3      slim.safetensors

A bare name is looked up in our zoo, torchvision, timm and Ultralytics. Weights are random by default; the option
`checkpoint` of any named model is a file of them (`resnet18?checkpoint=weights.pth`, `torchslim.zoo.checkpoints`), and
`new_head=True` beside it leaves those layers random that depend on `num_classes`, where the file's are of another size.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import torch
from torch import nn

from torchslim.errors import MissingExtra, RequestError, TorchslimError
from torchslim.utils.importing import check_call, import_factory, import_path
from torchslim.utils.text import describe_error, did_you_mean, quoted
from torchslim.zoo.checkpoints import check_checkpoint, load_checkpoint
from torchslim.zoo.libraries import LIBRARIES, WEIGHT_OPTIONS
from torchslim.zoo.misplaced_files import EXPORTED, SAVED_SUFFIX, WEIGHTS, check_file, no_model

_SYNONYMS = {"num_classes": ("classes", "n_classes", "num_labels", "nc")}
"""What factories call an option that all libraries here call by one name."""


@dataclass(frozen=True)
class Source:
    """The origin of a model; `str()` gives its specification.

    Attributes:
        kind: a library (one of `LIBRARIES`), `module` or `file` (a factory), or `saved` (a file).
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
        """The source with defaults for unset options that the builder accepts, a factory perhaps as `_SYNONYMS`.

        A saved slim model gets none, since its architecture is fixed.

        Raises:
            RequestError: the factory can't be imported.
        """
        if self.kind == "saved":
            return self
        if self.is_code:
            factory = _factory(self)
            names = {key: next(filter(partial(_accepts, factory), (key, *_SYNONYMS.get(key, ()))), "")
                     for key in defaults}
        else:
            names = {key: key for key in ("num_classes", *LIBRARIES[self.kind].options(self.name))}
        accepted = {names[key]: value for key, value in defaults.items() if names.get(key)}
        return replace(self, options={**self.options, **accepted, **self.options})

    def with_weights(self, path: str, new_head: bool) -> Source:
        """The source with the weights in a file; see `create_model`.

        Raises:
            RequestError: it has weights already.
        """
        given = next((f"{name}={self.options[name]}" for name in ("checkpoint", "weights") if self.options.get(name)),
                     "is a saved model" if self.kind == "saved" else "")
        if given:
            raise RequestError(f"--weights {path}: {self} has weights already ({given}); leave one of them out")
        return replace(self, options={**self.options, "checkpoint": path, **({"new_head": True} if new_head else {})})

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
        return Source("saved", check_file(head), options)
    path, _, factory = head.rpartition(":")
    if path.endswith(".py") and factory:
        return Source("file", f"{check_file(path)}:{factory}", options)
    if re.fullmatch(r"[\w.]+:[\w.]+", head):
        return Source("module", head, options)
    if not head.strip() or "/" in head or ":" in head or _is_path(head):
        raise no_model(text)
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
    factory, given = _factory(source), dict(options)
    where = str(replace(source, options=options))
    own = _parameters(factory)
    checkpoint = None if "checkpoint" in own else given.pop("checkpoint", None)
    new_head = given.pop("new_head", False) if "new_head" not in own else False
    check_call(factory, where, given)
    _check_weights(where, checkpoint, new_head, given)
    model = _call_factory(source, factory, where, given)
    if checkpoint is None:
        return model
    other = partial(_call_factory, source, factory, where)
    return load_checkpoint(model, checkpoint, where, _head(model, other, given) if new_head else ())


def _call_factory(source: Source, factory: Callable[..., Any], where: str, given: Mapping[str, Any]) -> nn.Module:
    try:
        with import_path(source.name):
            model = factory(**given)
    except (Exception, SystemExit) as error:
        shown = f" with {_shown(given)}" if given else ""
        raise RequestError(f"{where}: the factory failed{shown}: {describe_error(error)}; call it in Python to see "
                           "where") from error
    if not isinstance(model, nn.Module):
        raise RequestError(f"{where}: the factory returned a {type(model).__name__}, "
                           "wanted a torch.nn.Module")
    return model


def _check_weights(where: str, checkpoint: Any, new_head: Any, options: Mapping[str, Any]) -> None:
    """Check what is known of a file of weights before a model is built for it."""
    if checkpoint is not None:
        check_checkpoint(checkpoint, where)
    if not isinstance(new_head, bool):
        raise RequestError(f"{where}: new_head={new_head!r} found, True or False wanted")
    if new_head and (checkpoint is None or type(options.get("num_classes")) is not int):
        raise RequestError(f"{where}: new_head=True needs a file of weights and the number of classes of the new head; "
                           "give checkpoint= and num_classes=, or a model that takes num_classes")


def _head(model: nn.Module, build: Callable[[Mapping[str, Any]], nn.Module], options: Mapping[str, Any]) -> list[str]:
    """The tensors whose shapes depend on the number of classes."""
    with torch.random.fork_rng(devices=[]):
        other = build({**options, "num_classes": options["num_classes"] + 1}).state_dict()
    return [name for name, value in model.state_dict().items() if name not in other or other[name].shape != value.shape]


def is_library(spec: str) -> bool:
    """Whether a specification begins with a library: building it runs only that library's code."""
    return spec.partition("?")[0].partition(":")[0] in LIBRARIES


def create_model(name: str, *, weights: str | None = None, checkpoint: str | Path | None = None,
                 new_head: bool = False, **options: Any) -> nn.Module:
    """A model by name: of our zoo, torchvision, timm or Ultralytics, in this order, or after a prefix such as `timm:`.

    Args:
        name: see `list_models`.
        weights: None for random weights, "DEFAULT" for the library's, or a name ("IMAGENET1K_V1"). Our networks
            with a torchvision counterpart take its weights. With another `num_classes` than that of the weights, the
            layers that depend on it stay random.
        checkpoint: a file with the weights in place of the library's: a state dict that torch or safetensors saved,
            alone or in a training script's checkpoint. Nothing in it is run; all tensors must fit.
        new_head: leave random what depends on `num_classes` and is of another size in the checkpoint; a warning names
            these tensors.
        options: passed to the library's builder (`num_classes=10`, `width=0.5`, ...).

    Raises:
        RequestError: an unknown name (with close matches), an option that the builder refuses, or a checkpoint that
            can't be read or does not fit.
        MissingExtra: a name of timm's, which is not installed.
        TorchslimError: the weights could not be fetched.
    """
    kind, _, rest = name.partition(":")
    if kind not in LIBRARIES or not rest:
        kind, rest = _library_of(name), name
    where = f"{kind}:{_check_name(kind, rest)}"
    if checkpoint is not None and weights is not None:
        raise RequestError(f"{where}: checkpoint={str(checkpoint)!r} and weights={weights!r} both say which weights it "
                           "has; give one of them")
    _check_weights(where, checkpoint, new_head, options)
    try:
        model = LIBRARIES[kind].build(rest, weights, options)
    except TorchslimError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or (weights is not None and isinstance(error, RuntimeError)):
            raise TorchslimError(f"{where}: the weights could not be fetched: {describe_error(error)}; "
                                 "try again, or weights=None for random ones") from error
        given = {"weights": weights, **options} if weights is not None else options
        raise RequestError(f"{where}: the builder refused {_shown(given) or 'no options'}: {describe_error(error)}"
                           f"{_option_hint(kind, rest, error)}") from error
    if checkpoint is None:
        return model
    head = _head(model, lambda changed: LIBRARIES[kind].build(rest, None, dict(changed)), options) if new_head else ()
    return load_checkpoint(model, checkpoint, str(Source(kind, rest, {**options, "checkpoint": str(checkpoint)})), head)


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
    hint = did_you_mean(name, names, "`torchslim models` lists the names")
    extra = "" if find_spec("timm") else " (timm's names need pip install 'torchslim[timm]')"
    return RequestError(f"{where}: no model of that name; {hint}{extra}")


def _is_path(head: str) -> bool:
    """Whether a word is rather a path than a misspelt name of a model."""
    path = Path(head)
    return path.exists() or path.suffix.lower() in (*WEIGHTS, *EXPORTED, ".py")


def _factory(source: Source) -> Callable[..., Any]:
    try:
        factory = import_factory(source.name)
    except RequestError as error:
        prefix, _, name = source.name.partition(":")
        close = did_you_mean(prefix, LIBRARIES, "no")
        if close == "no" or not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        raise RequestError(f"{error}; {close.rstrip('?')}:{name}?") from error
    if not callable(factory) or isinstance(factory, nn.Module):
        raise RequestError(f"{source}: {source.name.rpartition(':')[2]} is a {type(factory).__name__}, "
                           "wanted a function or class that makes a torch.nn.Module")
    checked: Callable[..., Any] = factory
    return checked


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _accepts(factory: Callable[..., Any], option: str) -> bool:
    parameters = _parameters(factory)
    named = option in parameters and parameters[option].kind is not inspect.Parameter.POSITIONAL_ONLY
    return named or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _option_hint(kind: str, name: str, error: Exception) -> str:
    """The options that may have been meant, where a library's builder does not know one."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not unknown:
        return ""
    names = LIBRARIES[kind].options(name)
    return f"; {did_you_mean(unknown[1], dict.fromkeys(names))}" if names else ""


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def _parse_options(text: str, spec: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in filter(None, text.split("&")):
        key, equals, value = pair.partition("=")
        if not (equals and value and key.isidentifier()) or key in options or re.search(r"\?\w+=", value):
            raise RequestError(f"{quoted(spec)}: option {pair!r} found, NAME=VALUE wanted, each name once, joined by "
                               "&; try 'torchvision:resnet18?num_classes=10&weights=DEFAULT'")
        options[key] = _parse_value(unquote(value))
    return options


def _parse_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) and value and _parse_value(value) == value else repr(value)


def _quoted(text: str) -> str:
    return quote(text, safe=" !\"'()*+,/:;<=>@[]^`{|}~")

