"""The layout: packages in one direction, no import cycle, files and functions of a size that can be read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchslim
from helpers import DOCS

PACKAGE = Path(torchslim.__file__).parent

# A package imports only what stands before it. The package itself hands on names and imports each when it is used.
PACKAGES = [
    "utils", "tracing", "rules", "coupling", "costs", "surgery", "proof", "compensation", "importance", "deploy",
    "latency", "planning", "rewriting", "train", "blocks", "zoo", "store", "report", "pipeline", "integrations", "cli",
]
LOOSE = ["__init__", "__main__", "_version", "errors", "formulas"]
ORDER = ["_version", "errors", "formulas", *PACKAGES, "__init__", "__main__"]


def sources() -> dict[str, Path]:
    """Every module by its name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("torchslim", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = sources()


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of torchslim that a file imports, anywhere in it and for type checking too, with line numbers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "torchslim")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module is not None and node.module.split(".")[0] == "torchslim":
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    yield (module if module in MODULES else node.module), node.lineno


def package(module: str) -> str:
    """`torchslim.rules.linear` is in `rules`; `torchslim` itself is `__init__`."""
    return [*module.split("."), "__init__"][1]


def test_the_folder_holds_packages_and_few_loose_modules() -> None:
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(LOOSE)
    assert sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")) == sorted(PACKAGES)


def test_packages_import_in_one_direction() -> None:
    wrong = [f"{path.relative_to(PACKAGE)}:{line} imports {other}"
             for module, path in MODULES.items() if package(module) not in ("__init__", "__main__")
             for other, line in imported(path)
             if ORDER.index(package(other)) > ORDER.index(package(module))
             and (package(other) != "__init__" or package(module) not in USERS_OF_THE_PUBLIC_NAMES)]
    assert wrong == []


# What stands above everything that the public names come from may use them as any user would.
USERS_OF_THE_PUBLIC_NAMES = ("pipeline", "cli")


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {other for other, _ in imported(path) if other not in (module, "torchslim")}
             for module, path in MODULES.items() if module != "torchslim"}
    done: set[str] = set()

    def visit(module: str, chain: tuple[str, ...]) -> None:
        assert module not in chain, " -> ".join([*chain[chain.index(module):], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*chain, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_says_what_it_is_in_a_few_lines(name: str) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8")))
    assert said is not None
    assert len(said.splitlines()) <= 10


def test_the_layout_in_the_documents_names_every_package() -> None:
    layout = (DOCS / "design.md").read_text(encoding="utf-8").split("## Layout")[1]
    named = re.findall(r"^ {6}(\w+)(?:\.py|/) ", layout, re.MULTILINE)
    assert sorted(named) == sorted([*LOOSE, *PACKAGES])


MOST_LINES = {"file": 350, "function": 60}


def test_files_and_functions_can_be_read_at_a_glance() -> None:
    texts = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    long = {module: text.count("\n") for module, text in texts.items() if text.count("\n") > MOST_LINES["file"]}
    for module, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MOST_LINES["function"]:
                long[f"{module}.{node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    assert long == {}
