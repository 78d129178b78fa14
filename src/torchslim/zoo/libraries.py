"""The libraries of models, one row each: their names, and how to build a model.

Nothing is downloaded unless weights are requested. A library is imported when its names are first used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from torchslim.errors import MissingExtra, RequestError
from torchslim.zoo import ultralytics

# Options that make a library fetch or read weights.
WEIGHT_OPTIONS = frozenset({
    "weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "checkpoint_path", "cache_dir", "progress", "checkpoint", "new_head",
})


@dataclass(frozen=True)
class Library:
    """One library.

    Attributes:
        names: every name it lists; none when it is not installed.
        has: whether it can build a name (also unlisted ones).
        build: name, weights (None for random ones) and further options to a model.
        input_size: name to channels, height and width of its standard input.
        options: name to the keywords that its builder is known to take.
        is_detector: whether the model of a name takes a list of pictures, and finds boxes.
    """

    names: Callable[[], list[str]]
    has: Callable[[str], bool]
    build: Callable[[str, str | None, dict[str, Any]], nn.Module]
    input_size: Callable[[str], tuple[int, int, int]]
    options: Callable[[str], list[str]]
    is_detector: Callable[[str], bool] = lambda name: False


def _keywords(builder: Callable[..., Any]) -> list[str]:
    """The keywords of a builder, and those of the class that it says it returns; none where it does not say."""
    try:
        signature = inspect.signature(builder, eval_str=True)
    except (NameError, TypeError, ValueError):
        return []
    made = signature.return_annotation
    called: list[Callable[..., Any]] = [builder]
    if inspect.isclass(made) and made is not signature.empty:
        called.append(made)
    return [name for each in called for name, p in inspect.signature(each).parameters.items()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


# --- torchvision --------------------------------------------------------------------------------------------

def _torchvision_names() -> list[str]:
    from torchvision import models

    # Quantised models are the same architectures in another tool's form.
    return [name for name in models.list_models() if not name.startswith("quantized_")]


def _torchvision_has(name: str) -> bool:
    return name in _torchvision_names()


def _torchvision_build(name: str, weights: str | None, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    _check_weights(name, weights)
    if weights is not None and "num_classes" in options:
        return _with_new_head(name, weights, options)
    options = dict(options)
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    if "weights_backbone" in accepted and weights is None:
        options.setdefault("weights_backbone", None)  # else the backbone's weights are downloaded
    if name in ("inception_v3", "googlenet") and weights is None:
        options.setdefault("init_weights", False)  # torchvision's future default; True is slow
    model: nn.Module = models.get_model(name, weights=weights, **options)
    return model


def _check_weights(name: str, weights: str | None) -> None:
    """Reject weights that a torchvision network does not have."""
    from torchvision import models

    known = ["DEFAULT", *(entry.name for entry in models.get_model_weights(name))]
    if isinstance(weights, str) and weights.rpartition(".")[2] not in known:
        raise RequestError(f"torchvision:{name}: weights={weights!r} found, one of {', '.join(known)} wanted; "
                           "take weights=None for random ones")


def _torchvision_options(name: str) -> list[str]:
    from torchvision import models

    return _keywords(models.get_model_builder(name))


def _torchvision_detects(name: str) -> bool:
    from torchvision import models

    return name in models.list_models(module=models.detection)


def _with_new_head(name: str, weights: str, options: dict[str, Any]) -> nn.Module:
    """A pretrained model with newly initialised layers where shapes depend on the number of classes."""
    rest = {key: value for key, value in options.items() if key != "num_classes"}
    model = _torchvision_build(name, weights, rest)
    fresh = _torchvision_build(name, None, options)
    old, new = model.state_dict(), fresh.state_dict()
    layers = {key.rpartition(".")[0] for key in old if key in new and old[key].shape != new[key].shape}
    for layer in sorted(layers):
        model.set_submodule(layer, fresh.get_submodule(layer))
    for path, module in fresh.named_modules():  # heads that store the number of classes
        attributes = vars(model.get_submodule(path))
        attributes.update({key: value for key, value in vars(module).items()
                           if type(value) is int and type(attributes.get(key)) is int})
    return model


def _torchvision_input(name: str) -> tuple[int, int, int]:
    return (3, 299, 299) if name == "inception_v3" else (3, 224, 224)


# --- torchslim ----------------------------------------------------------------------------------------------

def _zoo() -> Any:
    return import_module("torchslim.zoo")


def _zoo_names() -> list[str]:
    return sorted(_zoo().NETWORKS)


def _zoo_has(name: str) -> bool:
    return name in _zoo().NETWORKS


def _zoo_build(name: str, weights: str | None, options: dict[str, Any]) -> nn.Module:
    zoo = _zoo()
    _check_options(name, options)
    model: nn.Module = zoo.NETWORKS[name].build(**options)
    if weights is not None:
        counterpart = _counterpart(name, options)
        classes = {"num_classes": options["num_classes"]} if "num_classes" in options else {}
        trained = _torchvision_build(counterpart, weights, classes)
        model.load_state_dict(zoo.from_torchvision(model, trained.state_dict()))
    return model


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Reject unknown options; torchvision's network of the same name may have them."""
    entry = _zoo().NETWORKS[name]
    accepted = list(inspect.signature(entry.build).parameters)
    refused = ", ".join(f"{key}={value!r}" for key, value in options.items() if key not in accepted)
    if refused:
        accepted += ["weights"] if entry.torchvision else []
        other = (f"; torchvision:{name} has the same layers and torchvision's options"
                 if name in entry.torchvision.values() else "")
        raise RequestError(f"torchslim:{name}: the builder refused {refused}; its options are "
                           f"{', '.join(accepted)}{other}")


def _zoo_options(name: str) -> list[str]:
    return _keywords(_zoo().NETWORKS[name].build)


def _counterpart(name: str, options: dict[str, Any]) -> str:
    """The torchvision network whose trained weights fit."""
    networks = _zoo().NETWORKS
    if not networks[name].torchvision:
        known = sorted(other for other in networks if networks[other].torchvision)
        raise RequestError(f"torchslim:{name}: there are no trained weights for it, only for {', '.join(known)}; "
                           "take weights=None")
    width, channels = options.get("width", 1), options.get("in_channels", 3)
    if width not in networks[name].torchvision or channels != 3:
        widths = " or ".join(map(str, networks[name].torchvision))
        raise RequestError(f"torchslim:{name}: width={width}, in_channels={channels} found, trained weights are for "
                           f"width={widths}, in_channels=3; take weights=None")
    counterpart: str = networks[name].torchvision[width]
    return counterpart


def has_weights(kind: str, name: str) -> bool:
    """Whether trained weights exist (assumed for other libraries)."""
    return bool(_zoo().NETWORKS[name].torchvision) if kind == "torchslim" else kind != "ultralytics"


def _zoo_input(name: str) -> tuple[int, int, int]:
    size = _zoo().NETWORKS[name].size
    return 3, size, size


# --- timm ---------------------------------------------------------------------------------------------------

def _timm() -> Any:
    if find_spec("timm") is None:
        raise MissingExtra("timm", "timm", "a model of timm")
    return import_module("timm")


def _timm_names() -> list[str]:
    return list(_timm().list_models()) if find_spec("timm") else []


def _timm_has(name: str) -> bool:
    return bool(_timm().is_model(name))


def _timm_build(name: str, weights: str | None, options: dict[str, Any]) -> nn.Module:
    if weights not in (None, "DEFAULT"):
        raise RequestError(f"timm:{name}: weights={weights!r} found, None or 'DEFAULT' wanted; "
                           f"name a tag of timm's instead: timm:{name.partition('.')[0]}.TAG?weights=DEFAULT")
    model: nn.Module = _timm().create_model(name, pretrained=weights is not None, **options)
    return model


def _timm_input(name: str) -> tuple[int, int, int]:
    config = _timm().get_pretrained_cfg(name)
    channels, height, width = config.input_size if config is not None else (3, 224, 224)
    return channels, height, width


def _timm_options(name: str) -> list[str]:
    return ["in_chans", *_keywords(_timm().model_entrypoint(name))]


# In the order in which bare names are looked up.
LIBRARIES: dict[str, Library] = {
    "torchslim": Library(_zoo_names, _zoo_has, _zoo_build, _zoo_input, _zoo_options),
    "torchvision": Library(_torchvision_names, _torchvision_has, _torchvision_build, _torchvision_input,
                           _torchvision_options, _torchvision_detects),
    "timm": Library(_timm_names, _timm_has, _timm_build, _timm_input, _timm_options),
    "ultralytics": Library(ultralytics.names, ultralytics.has, ultralytics.build,
                           lambda name: (3, ultralytics.SIDE, ultralytics.SIDE), lambda name: ["num_classes"],
                           lambda name: True),
}
