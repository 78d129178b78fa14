"""What is public, what is imported when, and who may import whom."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchslim

PACKAGE = Path(torchslim.__file__).parent

PUBLIC = [
    "Plan", "Profile", "Sensitivity", "apply", "blocks", "carry_optimizer", "compensate", "create_model", "errors",
    "export", "groups", "importance", "lighten", "list_models", "load", "measure", "plan", "preset", "profile", "prune",
    "register_rule", "rewriting", "save", "schedule", "sensitivity", "train", "verify", "zoo",
]

# Nothing imports what stands later in this list; modules of one subpackage may import each other.
ORDER = [
    "__init__", "errors", "wording", "formulas", "schedules", "units", "blocks", "zoo", "files", "plans", "calling",
    "modules", "graph", "terms", "labels", "untouched", "shapes", "blindness", "trace", "rules", "tapes", "unread",
    "channels", "grouping", "coupling", "memory", "profiler", "findings", "layering", "advice", "latency", "layertimes",
    "copying", "exporting", "backends", "lockstep", "spec", "moments", "settling", "gradients", "importance", "budget",
    "shortfall", "geometry", "surfaces", "timetable", "parts", "clockmeter", "pacing", "stopwatches", "deadlines",
    "choice", "widths", "surgery", "optimizers", "mending", "orders", "matching", "trouble", "float64", "reference",
    "proof", "compensation", "pruning", "stepping", "ladder", "presets", "rewriting", "libraries", "sources", "store",
    "plotting", "train", "report", "sensing", "pipeline", "recipes", "cli", "__main__",
]

# Imports against the order, each inside a function: a saved model is a source of models, and has a source itself.
AGAINST_THE_ORDER = {("sources", "store")}

HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "openvino", "sklearn", "accelerate",
         "numpy", "safetensors", "rich")


def part(module: str) -> str:
    """`torchslim.rules.linear` is part of `rules`; `torchslim` itself is `__init__`."""
    return [*module.split("."), "__init__"][1]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("torchslim", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of torchslim that a file imports, at any depth, with line numbers; type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {child for node in ast.walk(tree) if isinstance(node, ast.If)
               and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
               for statement in node.body for child in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if part_of_us(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module == "torchslim":  # from torchslim import sources: a module; import __version__: a name
                for alias in node.names:
                    known = alias.name in ORDER
                    yield f"torchslim.{alias.name}" if known else "torchslim", node.lineno
            elif node.module is not None and part_of_us(node.module):
                yield node.module, node.lineno


def part_of_us(module: str) -> bool:
    return module == "torchslim" or module.startswith("torchslim.")


def test_the_public_names_are_these_and_all_of_them_work() -> None:
    assert torchslim.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(torchslim, name) is not None
        assert name in dir(torchslim)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = torchslim.nonsense


def test_no_module_hides_a_public_function() -> None:
    for module in modules():
        if module != "torchslim":
            importlib.import_module(module)
    for name in PUBLIC:
        if name not in ("blocks", "errors", "importance", "rewriting", "train", "zoo"):
            assert callable(getattr(torchslim, name)), name


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part(module) for module in modules()} == set(ORDER)


def test_nothing_imports_what_comes_later() -> None:
    wrong, used = [], set()
    for module, path in modules().items():
        for imported, line in imports(path):
            pair = part(module), part(imported)
            # The package itself knows all names and imports each when it is asked for.
            if "__init__" in pair or ORDER.index(pair[1]) <= ORDER.index(pair[0]):
                continue
            if pair in AGAINST_THE_ORDER:
                used.add(pair)
            else:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {imported}")
    assert wrong == []
    assert used == AGAINST_THE_ORDER


def test_imports_against_the_order_are_inside_functions() -> None:
    for module, path in modules().items():
        at_the_top = ast.Module(ast.parse(path.read_text(encoding="utf-8")).body, [])
        for node in at_the_top.body:
            if isinstance(node, ast.ImportFrom) and node.module is not None and part_of_us(node.module):
                assert (part(module), part(node.module)) not in AGAINST_THE_ORDER, f"{path}:{node.lineno}"


def test_the_layout_in_the_documents_names_every_part() -> None:
    layout = (PACKAGE.parents[1] / "docs" / "design.md").read_text(encoding="utf-8").split("## Layout")[1]
    named = re.findall(r"^ {6}(\w+)(?:\.py|/) ", layout, re.MULTILINE)
    assert sorted(named) == sorted(ORDER)


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stderr.split()}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded_after("import torchslim; torchslim.__version__").isdisjoint(HEAVY)


def test_the_formulas_need_no_torch() -> None:
    loaded = loaded_after("from torchslim import formulas; formulas.separable(64, 128, 3, (32, 32))")
    assert "torchslim" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", [
    ["--help"], ["--version"], ["prune", "--help"], ["slim", "--help"], ["models", "--nonsense"]])
def test_the_command_line_answers_without_torch(command: list[str]) -> None:
    code = f"from torchslim import cli; sys.argv = ['torchslim', *{command}]; cli.main(); sys.stderr.flush()"
    loaded = loaded_after(code)
    assert "torchslim" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_package_runs_as_a_module() -> None:
    for arguments, status in (["--version"], 0), (["nonsense"], 2):
        done = subprocess.run([sys.executable, "-m", "torchslim", *arguments], capture_output=True, text=True)
        assert done.returncode == status
        assert done.stdout == ("" if status else f"torchslim {torchslim.__version__}\n")
        assert done.stderr == ("error: No such command 'nonsense'; try --help\n" if status else "")


def test_using_the_core_imports_no_optional_package() -> None:
    code = ("import torch, torchslim; m = torchslim.create_model('squeezenet1_1');"
            "torchslim.profile(m, torch.rand(1, 3, 32, 32)); torchslim.export, torchslim.save, torchslim.measure")
    assert loaded_after(code).isdisjoint({"timm", "onnx", "onnxruntime", "openvino", "sklearn", "accelerate"})
