"""Factories named by `file.py:factory` or `package.module:factory`."""

import sys
from pathlib import Path

import pytest

from torchslim.errors import RequestError
from torchslim.utils.importing import import_factory


def test_a_factory_of_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_factory.py").write_text("WIDTH = 7\n")
    (tmp_path / "factories.py").write_text(
        "import neighbour_of_factory\nclass Nets:\n    @staticmethod\n"
        "    def small(): return neighbour_of_factory.WIDTH\n")
    before = list(sys.path)
    assert import_factory(f"{tmp_path / 'factories.py'}:Nets.small")() == 7
    assert sys.path == before


def test_a_factory_of_a_module_and_one_that_does_not_exist() -> None:
    assert import_factory("torchslim.utils.text:describe_error").__name__ == "describe_error"
    with pytest.raises(RequestError, match="could not be imported: ModuleNotFoundError"):
        import_factory("torchslim.no_such_module:factory")
