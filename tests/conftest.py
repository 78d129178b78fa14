"""Settings for every test: how hard the property tests search."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

# Before torch is loaded: threads that wait must not take the cores from the other worker.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import HealthCheck, settings

from helpers import Call, heeds_ctrl_c
from torchslim import cli

SEARCH = {"deadline": None, "derandomize": True, "print_blob": True,
          "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("normal", max_examples=80, **SEARCH)
settings.register_profile("nightly", max_examples=2000, **{**SEARCH, "derandomize": False})
settings.load_profile("normal")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured times are kept in a folder of the test run, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Each test starts from one random state, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heeded() -> None:
    """A shell's background jobs ignore it, and tests that are started in one would, too."""
    heeds_ctrl_c()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torchslim", *map(str, arguments)])
        status = cli.main()
        return (status, *capsys.readouterr())

    return run
