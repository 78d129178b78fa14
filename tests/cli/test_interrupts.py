"""Ctrl-C and SIGTERM have statuses of their own, whatever the code that they meet makes of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers import Call
from torchslim.pipeline import phases, runner


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def swallow() -> None:
    with suppress(BaseException):  # as some libraries do
        interrupt()


def turn_into_another() -> None:
    try:
        interrupt()
    except KeyboardInterrupt as error:
        raise RuntimeError("a worker died") from error


@pytest.mark.parametrize(("happens", "status", "said"), [
    (interrupt, 130, "interrupted; run the same command again"), (swallow, 130, "interrupted; run the same"),
    (turn_into_another, 130, "interrupted; run the same"),
    (lambda: interrupt(signal.SIGTERM), 143, "interrupted; run the same"),
    (lambda: sys.exit(0), 2, "the code that was called ended the process with sys.exit(0); guard it"),
])
def test_what_happens_in_a_command(call: Call, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None],
                                   status: int, said: str) -> None:
    def models(_pattern: str) -> list[str]:
        happens()
        return []

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr("torchslim.zoo.sources.list_models", models)
    found, out, err = call("models")
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert err.startswith(f"error: {said}")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_that_is_ignored_stays_ignored(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchslim.zoo.sources.list_models", lambda _: [str(interrupt())])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert call("models")[0] == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("happens", [interrupt, swallow])
def test_slim_in_every_phase(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                             happens: Callable[[], None]) -> None:
    """The phases do nothing here but be interrupted, one after the other; those before are done."""
    command = ("torchslim", "slim", "torchvision:resnet18", "--data", "digits", "--macs", "0.4", "--sparsify-epochs",
               "1", "--out", str(tmp_path))
    met: list[str] = []

    def phase(each: runner.Phase) -> Callable[[Any], dict[str, Any]]:
        def work(run: Any) -> dict[str, Any]:
            for made in each.makes:
                run.folder.file(made).touch()
            if each.name not in met:
                met.append(each.name)
                happens()
            return {}

        return work

    monkeypatch.setattr(runner, "_check_request", lambda *_: None)
    for each in runner.PHASES:
        monkeypatch.setattr(phases, each.work, phase(each))
    for number in range(1, len(runner.PHASES) + 1):
        status, out, err = call(*command[1:])
        assert (status, out, len(met)) == (130, "", number)
        assert err.splitlines()[-1] == f"interrupted; go on with: {' '.join(command)}"
