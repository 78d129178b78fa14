"""Sections of a page of results: each benchmark writes its own, and leaves the others alone."""

from __future__ import annotations

from pathlib import Path


def into(path: Path, section: str) -> None:
    """Put a section, which starts with its heading of the second level, in place of the one of the same heading."""
    heading = section.partition("\n")[0]
    text = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    before, found, rest = text.partition(f"{heading}\n")
    after = rest.partition("\n## ")[2] if found else ""
    path.write_text(f"{before.rstrip()}\n\n{section.rstrip()}\n" + (f"\n## {after}" if after else ""), encoding="utf-8")
