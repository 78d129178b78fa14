"""Files of text, JSON and YAML, and what is wrong with one that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchslim.errors import MissingExtra
from torchslim.train.datasets.request import DataRequest
from torchslim.utils.text import describe_error, printable


def read_text(request: DataRequest, path: Path) -> str:
    """A file's text, UTF-8 with or without a mark at the beginning.

    Raises:
        RequestError: no such file, no permission, other bytes.
    """
    where = printable(path)
    if not path.exists():
        raise request.error(f"there is no file {where}; look at its name")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise request.error(f"{where}: not text in UTF-8 ({describe_error(error)}); save it so") from error
    except OSError as error:
        raise request.error(f"{where}: can't be read ({error.strerror}); give a file that may be read") from error


def read_json(request: DataRequest, path: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        RequestError: it can't be read, or is no JSON.
    """
    try:
        return json.loads(read_text(request, path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise request.error(f"{printable(path)}: not JSON ({describe_error(error)}); give a file of JSON") from error


def read_yaml(request: DataRequest, path: Path) -> Any:
    """What a file of YAML holds.

    Raises:
        RequestError: it can't be read, or is no YAML.
        MissingExtra: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtra("pyyaml", "yolo", "data by a YAML file") from error
    try:
        return yaml.safe_load(read_text(request, path))
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f", line {line + 1}"
        raise request.error(f"{printable(path)}{where}: not YAML ({getattr(error, 'problem', None) or error}); mend "
                            "it") from error
