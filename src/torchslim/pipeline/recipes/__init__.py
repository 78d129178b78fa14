"""Published results as files for `torchslim slim --recipe`: paper, figures, settings, differences from the paper.

No torch here: recipes are listed and shown without it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from torchslim.errors import CheckpointError, RequestError
from torchslim.pipeline.settings import Settings
from torchslim.utils.json_values import read_values
from torchslim.utils.text import describe_error, did_you_mean

FOLDER = Path(__file__).parent
SUFFIX = ".toml"
# The output folder, threads and workers are not part of a recipe.
SETTINGS = tuple(field.name for field in fields(Settings) if field.name not in ("out", "threads", "workers"))


@dataclass(frozen=True)
class Recipe:
    """One published result and the settings to reproduce it.

    Attributes:
        name: its name here.
        title: what is cut, in a line.
        paper: authors, year and title.
        url: of the paper.
        published: the paper's figures, by metric.
        differs: differences from the paper, a sentence each.
        settings: of the run, by name in `torchslim.pipeline.settings.Settings`.
    """

    name: str
    title: str
    paper: str
    url: str
    published: Mapping[str, str]
    differs: tuple[str, ...]
    settings: Mapping[str, Any]

    def run(self, out: Path, epochs: int | None = None, **changes: Any) -> Settings:
        """The settings of a run by this recipe, with changes.

        Args:
            out: the run's folder.
            epochs: of every phase in the recipe, instead of the recipe's.
            changes: settings by name, instead of the recipe's.
        """
        settings = Settings(**{**self.settings, **changes, "out": out})
        if epochs is None:
            return settings
        own = {"baseline_epochs": settings.baseline_epochs, "sparsify_epochs": settings.pressing_epochs,
               "finetune_epochs": settings.finetune_epochs}
        shortened: dict[str, Any] = {name: epochs for name, count in own.items() if count and name not in changes}
        return replace(settings, **shortened)


def names() -> list[str]:
    """The included recipes' names."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def read(name: str | Path) -> Recipe:
    """A recipe by name, or from a custom file.

    Raises:
        RequestError: no such recipe (with close matches), or an invalid file.
    """
    path = Path(name)
    if path.suffix != SUFFIX:
        if str(name) not in names():
            hint = did_you_mean(str(name), names(), f"there are {', '.join(names())}")
            raise RequestError(f"recipe {name}: no such recipe; {hint} (a file of your own ends with {SUFFIX})")
        path = FOLDER / f"{name}{SUFFIX}"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # invalid TOML is a ValueError
        raise RequestError(f"recipe {path}: can't be read ({describe_error(error)}); give a TOML file such as those "
                           "that `torchslim recipes NAME` prints") from error
    return _recipe(path, raw)


def text_of(name: str) -> str:
    """A recipe's file as text.

    Raises:
        RequestError: see `read`.
    """
    read(name)
    path = Path(name) if Path(name).suffix == SUFFIX else FOLDER / f"{name}{SUFFIX}"
    return path.read_text(encoding="utf-8")


def _recipe(path: Path, raw: Mapping[str, Any]) -> Recipe:
    kinds: dict[str, type] = {"title": str, "paper": str, "url": str, "published": dict, "differs": list,
                              "settings": dict}
    for key, kind in kinds.items():
        if not isinstance(raw.get(key, kind()), kind):
            raise RequestError(f"recipe {path}: {key} is {type(raw[key]).__name__}, wanted {kind.__name__}")
    if unknown := sorted(set(raw) - set(kinds)):
        raise RequestError(f"recipe {path}: unknown entry {unknown[0]!r}; wanted {', '.join(kinds)}")
    settings = dict(raw.get("settings", {}))
    if unknown := sorted(set(settings) - set(SETTINGS)):
        hint = did_you_mean(unknown[0], SETTINGS, f"wanted some of {', '.join(SETTINGS)}")
        raise RequestError(f"recipe {path}: unknown setting {unknown[0]!r}; {hint}")
    if not settings:
        raise RequestError(f"recipe {path}: no settings; give a table [settings] with model, data and a budget")
    types = get_type_hints(Settings)
    for key, value in settings.items():
        try:
            read_values(types[key], value, f"recipe {path}: settings.{key}", "see `torchslim slim --help`")
        except CheckpointError as error:
            raise RequestError(str(error)) from error
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return Recipe(path.stem, raw.get("title", path.stem), raw.get("paper", ""), raw.get("url", ""),
                  {key: str(value) for key, value in raw.get("published", {}).items()},
                  tuple(str(line) for line in raw.get("differs", [])), settings)
