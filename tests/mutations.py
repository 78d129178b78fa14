"""Breaks every rule in `torchslim.rules`, one at a time, and expects a test to fail.

    python tests/mutations.py                     all mutants
    python tests/mutations.py --only aten.cat     those of the rows that the pattern matches
    python tests/mutations.py --list              which tests reach which row

The tests run once as they are, which says which of them reach which row, and what each row does: freezes, unites, sets
labels. Each row is then replaced by wrong ones, and the tests that reach it run until the first fails, the fastest
first. A mutant that no test notices survives, is printed, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch
from _pytest.runner import runtestprotocol

from torchslim import rules
from torchslim.rules import broadcasting
from torchslim.rules.labels import LabelSpace
from torchslim.rules.row import Row
from torchslim.rules.tracks import widest_dim
from torchslim.tracing.graph import Op

TESTS = Path(__file__).parent
# The second has the calls that torch does not dispatch.
DEFAULT = [str(TESTS / "rules"), str(TESTS / "constructs" / "test_undispatched.py")]
# What a rule may declare, and what leaving it out means.
DECLARED: dict[str, Any] = {"freeze": None, "union": None, "equal_groups": None, "equal_rows": None,
                            "add_sub_tensor": None, "mix": True, "reads": None, "makes": None, "meter": None,
                            "_merge_into": None}

Labels = Callable[[LabelSpace, Op], None]


def owner(name: str) -> Any:
    """Where a declaration is defined."""
    return broadcasting if name == "_merge_into" else LabelSpace


@dataclass
class Known:
    """What the tests, unchanged, do with one row."""

    row: Row
    tests: list[Any] = field(default_factory=list)
    declares: set[str] = field(default_factory=set)
    labels_results: bool = False
    matters: bool = False  # without it the operation would have another rule, or none


@contextmanager
def patched(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def observing(known: Known) -> Row:
    """The same row, which notes what it declares."""

    def labels(space: LabelSpace, op: Op) -> None:
        # Not by `tracks`, which makes labels for parameters.
        in_rows = any(sum(size > 1 for size in track.shape) > 1
                      for value in op.inputs for track in space._tracks.get(value.id, ()))
        within: list[str] = []

        def noting(name: str) -> Any:
            plain = getattr(owner(name), name)

            def noted(space: LabelSpace, *args: Any, **kwargs: Any) -> Any:
                # Rows that came in were declared where they arose.
                if name != "set" and not ({"equal_rows"} & {name, *within} and (in_rows or name == "equal_groups")):
                    known.declares.add(name)
                within.append(name)
                try:
                    return plain(space, *args, **kwargs)
                finally:
                    within.pop()
                    known.labels_results |= name == "set" and args[0].id in space._tracks
            return noted

        with ExitStack() as stack:
            for name in (*DECLARED, "set"):
                stack.enter_context(patched(owner(name), name, noting(name)))
            known.row.labels(space, op)

    return replace(known.row, labels=labels)


def without(row: Row, name: str) -> Row:
    """The row that forgets to declare one thing."""

    def labels(space: LabelSpace, op: Op) -> None:
        with patched(owner(name), name, lambda *_args, **_kwargs: DECLARED[name]):
            row.labels(space, op)

    return replace(row, labels=labels)


def rolled(row: Row) -> Row:
    """The row whose results carry the labels of the channels beside."""

    def labels(space: LabelSpace, op: Op) -> None:
        row.labels(space, op)
        for out in op.outputs:
            if out is not None and not out.name and out.id in space._tracks:
                space._tracks[out.id] = tuple(np.roll(t, 1, axis=widest_dim(t)) for t in space._tracks[out.id])

    return replace(row, labels=labels)


def unlabelled(row: Row) -> Row:
    """The row whose results carry no labels."""

    def labels(space: LabelSpace, op: Op) -> None:
        row.labels(space, op)
        for out in op.outputs:
            if out is not None and not out.name:
                space._tracks.pop(out.id, None)

    return replace(row, labels=labels)


def mutants(known: Known) -> Iterator[tuple[str, Row | None]]:
    """What each wrong row does, and the row; None where the row is gone."""
    if known.matters:
        yield "has no row", None
    if known.labels_results:
        if known.row.labels is not rules.elementwise.blank:  # labels that are new anyway
            yield "labels are rolled", rolled(known.row)
        yield "labels are dropped", unlabelled(known.row)
    for name in sorted(known.declares):
        yield f"forgets to {name.strip('_')}", without(known.row, name)
    macs = known.row.macs
    if macs is not None:
        yield "costs one too much", replace(known.row, macs=lambda op: macs(op) + 1)
        yield "costs nothing", replace(known.row, macs=None)


class Mutations:
    """The pytest plugin that runs the tests over and over."""

    def __init__(self, only: str, listing: bool) -> None:
        self.only, self.listing = only, listing
        self.known = {name: Known(row) for name, row in rules.ROWS.items() if fnmatch(name, only)}
        self.seconds: dict[Any, float] = {}
        self.survivors: list[str] = []
        self.killed = 0

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.observe(session.items)
        unreached = [name for name, known in self.known.items() if not known.tests]
        self.survivors += [f"{name}: no test reaches it" for name in unreached]
        for name, known in self.known.items():
            known.tests.sort(key=self.seconds.__getitem__)
            if self.listing:
                print(f"{name}: {len(known.tests)} tests, declares {sorted(known.declares)}")
                continue
            for what, row in mutants(known) if known.tests else ():
                self.try_one(name, f"{name} {what}", row, known.tests)
        return True

    def observe(self, items: Sequence[Any]) -> None:
        """Run everything once, unchanged."""
        reached: set[str] = set()
        plain = rules.row_of
        observed = {name: observing(known) for name, known in self.known.items()}

        def row_of(op: Op) -> Row | None:
            name, row = rules.row_name(op), plain(op)
            if name in self.known:
                reached.add(name)
                self.known[name].matters |= not self.replaceable(op, name)
                # Others ask for a row to learn what kind of operation it is of, which a wrapped one would not tell.
                if row is self.known[name].row and sys._getframe(1).f_code is rules.move_labels.__code__:
                    return observed[name]
            return row

        with patched(rules, "row_of", row_of):
            for item in items:
                reached.clear()
                reports = runtestprotocol(item, log=False)
                if any(report.failed for report in reports):
                    raise SystemExit(f"{item.nodeid} fails as it is")
                self.seconds[item] = sum(report.duration for report in reports)
                for name in reached:
                    self.known[name].tests.append(item)

    def replaceable(self, op: Op, name: str) -> bool:
        """Whether the operation would be treated alike without this row: as any other pointwise one."""
        alike = (rules.elementwise.pointwise, rules.elementwise.passing)
        return rules.is_pointwise(op.name) and self.known[name].row.labels in alike

    def try_one(self, name: str, what: str, row: Row | None, tests: Sequence[Any]) -> None:
        before = dict(rules.ROWS)
        if row is None:
            del rules.ROWS[name]
        else:
            rules.ROWS[name] = row
        try:
            failed = any(report.failed for item in tests for report in runtestprotocol(item, log=False))
        finally:
            rules.ROWS.clear()
            rules.ROWS.update(before)
        if failed:
            self.killed += 1
        else:
            self.survivors.append(what)
            print(f"survives: {what} ({len(tests)} tests)", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="names of rows, as a pattern")
    parser.add_argument("--list", action="store_true", help="say which tests reach which row, and stop")
    parser.add_argument("tests", nargs="*", default=DEFAULT, help="what to run")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    plugin = Mutations(asked.only, asked.list)
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *asked.tests], plugins=[plugin])
    if status != pytest.ExitCode.OK:
        return int(status)
    for line in plugin.survivors:
        print(f"survived: {line}")
    print(f"{plugin.killed} mutants killed, {len(plugin.survivors)} survived")
    return int(bool(plugin.survivors))


if __name__ == "__main__":
    sys.exit(main())
