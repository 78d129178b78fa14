"""Import a factory by its location: `file.py:factory` or `package.module:factory`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def import_factory(location: str) -> Any:
    """The object that `location` names; the name behind the last colon may be dotted (`Class.method`).

    Raises:
        ImportError: there is no such Python file or module.
        Exception: whatever the imported code raises.
    """
    path, _, name = location.rpartition(":")
    with import_path(location):
        module = _load_file(Path(path)) if path.endswith(".py") else import_module(path)
        return reduce(getattr, name.split("."), module)


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


def _load_file(path: Path) -> Any:
    name = f"_torchslim_file_{path.stem}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # data-loader workers and dataclasses look their module up
    spec.loader.exec_module(module)
    return module
