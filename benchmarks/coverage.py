"""Cut every architecture of torchvision and of timm's families, and write docs/coverage.md.

With `--field`: networks of other people's libraries, as far as these are installed, and docs/coverage-field.md. Each
network runs in a process of its own, under a limit of time and of memory. Results are kept line by line under
benchmarks/results; a second run goes on where the first stopped. Needs torchslim[timm].
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

# Before torch is loaded, in this process and its children.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torchslim
from matrix.field import FIELD
from matrix.measure import MACS, Row, approximate_too, measure
from matrix.networks import NETWORKS, Network
from matrix.table import good, table

HERE = Path(__file__).resolve().parent
SETTINGS = f"torchslim {torchslim.__version__}, macs={MACS}, shortcuts=True, importance=l2"
GIB = 2**30


def main() -> None:
    """Run what has no result yet, and write the table."""
    options = _parser().parse_args()
    networks, name = (FIELD, "coverage-field") if options.field else (NETWORKS, "coverage")
    options.results = options.results or HERE / "results" / f"{name}.jsonl"
    options.table = options.table or HERE.parent / "docs" / f"{name}.md"
    rows = _read(options.results)
    chosen = _chosen(networks, options.networks)
    if options.list:
        print("\n".join(f"{network.name:60} {network.section}" for network in chosen))
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs would ignore it
    try:
        if not options.table_only:
            _run(chosen, rows, options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
    rows = _read(options.results)
    _write(options.results, networks, rows)
    options.table.write_text(table(networks, rows, SETTINGS, field=options.field), encoding="utf-8")


def _run(chosen: Sequence[Network], rows: dict[str, Row], options: argparse.Namespace) -> None:
    context = multiprocessing.get_context("forkserver")
    # Imported once; each network's process is a fork of this.
    context.set_forkserver_preload(["timm", "torchvision", "torchslim.planning.pruning",
                                    "torchslim.proof.verification", "matrix.measure"])
    todo = list(chosen)
    end = time.monotonic() + options.minutes * 60
    while todo:
        network = todo.pop(0)
        row = rows.get(network.key)
        again = options.again or bool(options.networks) or (options.failed and row is not None and not good(row))
        if row is None or again:
            if time.monotonic() > end:
                print("no time left; the same command goes on from here", file=sys.stderr)
                return
            row = _in_process(context, network, options)
            rows[network.key] = row
            with options.results.open("a", encoding="utf-8") as file:
                file.write(_line(network.key, row))
            print(_told(network, row), flush=True)
        further = approximate_too(network, row)
        if further is not None:
            todo.insert(0, further)


def _in_process(context: multiprocessing.context.ForkServerContext, network: Network,
                options: argparse.Namespace) -> Row:
    """The network's row, as far as its process came."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(network, int(options.memory * GIB), theirs.send), daemon=True)
    start = time.monotonic()
    process.start()
    theirs.close()
    row: Row = {"stage": "start"}
    try:
        while row["stage"] != "done":
            if not ours.poll(max(0.0, start + options.limit - time.monotonic())):
                row["error"] = f"{row['stage']}: stopped after {options.limit} seconds"
                break
            row = ours.recv()
    except EOFError:
        process.join()
        row["error"] = f"{row['stage']}: the process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    row["wall"] = time.monotonic() - start
    return row


def _told(network: Network, row: Row) -> str:
    """A line for whoever watches."""
    keys = ("works", "trains", "exact", "error_size", "error")
    shown = " ".join(f"{key}={row[key]}" for key in keys if key in row)
    kept = f"{row['macs_kept']:.3f}" if "macs_kept" in row else "-"
    return f"{'ok ' if good(row) else 'BAD'} {network.key}: macs {kept} {shown} ({row['wall']:.0f} s)"


def _chosen(networks: Sequence[Network], patterns: Sequence[str]) -> list[Network]:
    """The networks that match a pattern, with or without their library."""
    chosen = [network for network in networks
              if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns
                                     for name in (network.name, network.name.partition(":")[2]))]
    if not chosen:
        sys.exit(f"no network matches {' '.join(patterns)}; --list names them")
    return chosen


def _read(path: Path) -> dict[str, Row]:
    """The last row of each network that was measured under these settings."""
    rows: dict[str, Row] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry.pop("settings") == SETTINGS:
                rows[entry.pop("network")] = entry
    return rows


def _write(path: Path, networks: Sequence[Network], rows: dict[str, Row]) -> None:
    """Each row once, in the order of the networks; those of networks that are not installed here come last."""
    keys = [key for network in networks for key in (network.key, f"{network.key} (approximate)") if key in rows]
    keys += [key for key in rows if key not in set(keys)]
    path.write_text("".join(_line(key, rows[key]) for key in keys), encoding="utf-8")


def _line(key: str, row: Row) -> str:
    return json.dumps({"network": key, "settings": SETTINGS, **row}) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="PATTERN",
                        help="run these again, e.g. timm:convnext_atto, 'resnet*'; default: all that have no result")
    parser.add_argument("--again", action="store_true", help="run all again, not only those without a result")
    parser.add_argument("--failed", action="store_true", help="run those again that did not do all they should")
    parser.add_argument("--list", action="store_true", help="name the networks, and run nothing")
    parser.add_argument("--table-only", action="store_true", help="write the table from the results, and run nothing")
    parser.add_argument("--limit", type=int, default=150, metavar="SECONDS", help="time for one network (150)")
    parser.add_argument("--memory", type=float, default=14, metavar="GIB", help="memory for one network (14)")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no further network after this time")
    parser.add_argument("--field", action="store_true", help="networks of other people's libraries, where installed")
    parser.add_argument("--results", type=Path, metavar="FILE", help="of results (benchmarks/results/coverage*.jsonl)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="the table to write (docs/coverage*.md)")
    return parser


if __name__ == "__main__":
    main()
