"""The examples in the docstrings of the main functions run as they stand."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import torchslim

FUNCTIONS = ("plan", "prune", "apply", "verify", "profile", "groups", "lighten", "compensate", "save", "export",
             "remove_dead")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_function_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(getattr(torchslim, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples, f"{name}: its docstring has no example"
    failures: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=failures.append)
    assert not failures, "".join(failures)
