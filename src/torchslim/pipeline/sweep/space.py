"""The space that a sweep searches: what each setting of a trial may be. Neither torch nor Optuna here.

A value is fixed, a list is of choices, and a list of two numbers of a setting that is a real number is a range.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torchslim.errors import RequestError
from torchslim.pipeline.sweep.settings import SweepSettings
from torchslim.utils.text import describe_error, did_you_mean

KINDS: dict[str, type] = {
    "macs": float, "params": float, "importance": str, "scope": str, "round_to": int, "min_kept": float,
    "compensate": bool, "finetune_lr": float, "finetune_epochs": int, "distill": float}
"""The settings of a trial that can be searched."""
LOGARITHMIC = frozenset({"finetune_lr"})
BUDGETS = ("macs", "params")
DEFAULT: dict[str, Any] = {
    "importance": ["auto", "l2"], "scope": ["global", "uniform"], "round_to": [1, 8], "finetune_lr": [0.001, 0.05],
    "distill": [0.0, 0.9]}
"""Beside the budget, from 0.1 to 0.9: multiply-adds, or parameters where these are the objective."""
_NAMES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


@dataclass(frozen=True)
class Dimension:
    """What one setting may be.

    Attributes:
        name: of the setting.
        values: the choices; of a range, both ends.
        is_range: whether all numbers between them are meant, too.
    """

    name: str
    values: tuple[Any, ...]
    is_range: bool = False

    def suggest(self, trial: Any) -> Any:
        """The value in a trial of Optuna."""
        if self.is_range:
            return trial.suggest_float(self.name, *self.values, log=self.name in LOGARITHMIC)
        return trial.suggest_categorical(self.name, list(self.values)) if len(self.values) > 1 else self.values[0]


def with_space(settings: SweepSettings) -> SweepSettings:
    """The settings with the default space, narrowed by their TOML file.

    Raises:
        RequestError: the file can't be read, or names what is no setting or no value of one.
    """
    path, given = settings.space, dict[str, Any]()
    if path is not None:
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(f"--space {path}: {describe_error(error)}; wanted a TOML file with lines such as "
                               "macs = [0.2, 0.5]") from error
    default: dict[str, Any] = DEFAULT
    if given.keys().isdisjoint(BUDGETS):
        default = {"params" if settings.objective == "params" else "macs": [0.1, 0.9], **DEFAULT}
    space = {**default, **given}
    for dimension in dimensions(space, f"--space {path}"):
        for value in dimension.values:
            _check_value(settings, dimension.name, value, f"--space {path}")
    return replace(settings, searched=json.dumps(space, sort_keys=True))


def dimensions(space: Mapping[str, Any], where: str = "space") -> list[Dimension]:
    """A space as dimensions, in the order of `KINDS`.

    Raises:
        RequestError: an unknown name, or a value of another type.
    """
    for name in space:
        if name not in KINDS:
            raise RequestError(f"{where}: {name}: no setting of a trial; {did_you_mean(name, KINDS)}")
    return [_dimension(name, space[name], where) for name in KINDS if name in space]


def trial_settings(settings: SweepSettings, values: Mapping[str, Any]) -> SweepSettings:
    """The settings of the trial with these values."""
    budget = {} if "macs" in values else {"macs": None}
    return replace(settings, **{**budget, **values})


def _dimension(name: str, value: Any, where: str) -> Dimension:
    kind = KINDS[name]
    listed = value if isinstance(value, list) else [value]
    wrong = [each for each in listed if not (type(each) is kind or (kind is float and type(each) is int))]
    if wrong or not listed:
        wanted = f"{_NAMES[kind]}, or a list of such"
        raise RequestError(f"{where}: {name} = {json.dumps(value, default=str)}: wanted {wanted}")
    values = tuple(kind(each) for each in listed)
    if kind is float and isinstance(value, list) and len(values) == 2:
        if not values[0] < values[1]:
            raise RequestError(f"{where}: {name} = {json.dumps(value)}: wanted a range, its lower end first")
        return Dimension(name, values, is_range=True)
    if len(set(values)) < len(values):
        raise RequestError(f"{where}: {name} = {json.dumps(value)}: a choice stands there twice; leave one out")
    return Dimension(name, values)


def _check_value(settings: SweepSettings, name: str, value: Any, where: str) -> None:
    if name in BUDGETS and not 0 < value <= 1:
        raise RequestError(f"{where}: {name} = {value}: wanted shares to keep, above 0 and at most 1")
    if name == "scope" and value not in ("global", "uniform"):
        raise RequestError(f"{where}: scope = {value!r}: {did_you_mean(value, ('global', 'uniform'))}")
    if name == "importance":
        from torchslim.importance import criterion
    try:
        replace(settings, **{name: value})
        if name == "importance":
            criterion(value)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error
