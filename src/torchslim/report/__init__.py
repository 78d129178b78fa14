"""The report: one HTML page with a run's savings, accuracy and verification.

The page is a single small file. It needs no network, server or library, and its content security policy forbids
requests; it suits small screens, print, dark mode and screen readers.
"""

from __future__ import annotations

import base64
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from torchslim.report.record import Record
from torchslim.utils.files import write_text

__all__ = ["Record", "render", "style_sheet", "write"]

_HERE = Path(__file__).parent


def render(record: Record) -> str:
    """The page as text; equal records give equal pages."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from torchslim.report import charts, texts
    from torchslim.utils import formatting as units

    page, style, script = (_HERE.joinpath(name).read_text(encoding="utf-8")
                           for name in ("page.html", "style.css", "page.js"))
    jinja = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    # The content security policy allows this script only, by its hash.
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return jinja.from_string(page).render(record=record, charts=charts, texts=texts, units=units,
                                          style=Markup(style), script=Markup(script), script_hash=script_hash)


def style_sheet() -> str:
    """The style of the project's pages."""
    return _HERE.joinpath("style.css").read_text(encoding="utf-8")


def write(record: Record, path: str | os.PathLike[str]) -> Path:
    """Write the page of `record` to `path` atomically; folders are made as needed.

    Raises:
        CheckpointError: the file cannot be written there.
    """
    target = Path(path)
    text = render(record)
    with suppress(OSError):  # writing the file reports what is wrong with the folder
        target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target
