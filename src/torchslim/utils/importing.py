"""Import a factory by its location: `file.py:factory` or `package.module:factory`."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from torchslim.errors import RequestError
from torchslim.utils.text import describe_error, did_you_mean


def import_factory(location: str) -> Any:
    """The object that `location` names; the name behind the last colon may be dotted (`Class.method`).

    Raises:
        RequestError: there is no such Python file or module, importing it fails, or it has no such attribute.
    """
    path, _, name = location.rpartition(":")
    found = _module(location, path)
    for part in name.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, _public(found), f"wanted a function that is in {path}")
            raise RequestError(f"{location}: could not be imported: {path} has no {part!r}; {hint}")
        found = getattr(found, part)
    return found


@contextmanager
def import_path(location: str) -> Iterator[None]:
    """Put the folder of a location's file, or the working directory, first on the import path, as `python` does."""
    path = location.rpartition(":")[0]
    folder = str((Path(path).parent if path.endswith(".py") else Path.cwd()).resolve())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the imported code may have removed it
            sys.path.remove(folder)


def factories_in(path: Path) -> list[str]:
    """The public functions of a Python file, by its text: nothing is run. None where it can't be read."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def check_call(factory: Callable[..., Any], where: str, options: Mapping[str, Any]) -> None:
    """Check that a factory takes these options, and needs no more.

    Raises:
        RequestError: it does not; the message names its options.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    unknown = [key for key in options if key not in named]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        close = did_you_mean(unknown[0], named, f"its options are {', '.join(named)}" if named else "it has no options")
        raise RequestError(f"{where}: takes no option {unknown[0]}={options[unknown[0]]!r}; {close}")
    missing = [name for name, p in named.items() if p.default is p.empty and name not in options]
    if missing:
        raise RequestError(f"{where}: needs {', '.join(missing)}; give such options after a question mark: "
                           f"{where.partition('?')[0]}?{'&'.join(f'{name}=VALUE' for name in missing)}")


def _module(location: str, path: str) -> ModuleType:
    try:
        with import_path(location):
            return _load_file(Path(path)) if path.endswith(".py") else import_module(path)
    except (Exception, SystemExit) as error:
        hint = "; modules are looked up in the working folder and among the installed packages" \
            if isinstance(error, ModuleNotFoundError) else ""
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise RequestError(f"{location}: could not be imported: {describe_error(error)}{line}{hint}") from error


def _public(found: Any) -> list[str]:
    return [name for name in dir(found) if not name.startswith("_")]


def _load_file(path: Path) -> ModuleType:
    name = f"_torchslim_file_{path.stem}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # data-loader workers and dataclasses look their module up
    spec.loader.exec_module(module)
    return module
