"""The table: rows of results to Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from itertools import groupby
from typing import Any

from matrix.networks import Network, families

Row = Mapping[str, Any]

_TITLE = """# Coverage

What torchslim makes of every convolutional architecture of torchvision and of at least one network of every
convolutional family of timm. Written by `python benchmarks/coverage.py`; see CONTRIBUTING.md.
"""
_FIELD_TITLE = """# Coverage of other libraries

What torchslim makes of networks of other people's libraries, at least one of each family, built without weights.
Written by `python benchmarks/coverage.py --field` where these were installed: {versions}.
"""
_HEAD = """
Settings: {settings}.
Weights, biases, norm statistics and layer scales are random, so that every branch is heard; nothing is downloaded.
Each network is planned for one input of the size given, in a process with one thread. Detectors see small pictures and
propose 50 regions; RAFT refines its flow three times.

- **works**: plan and apply succeed, and the slim network's outputs have the original's shapes (two inputs, eval mode).
- **trains**: one step forward and backward in train mode with two inputs, auxiliary heads and losses included
  (detectors: with targets); the loss and all gradients are finite.
- **exact**: `verify` in float64, at every layer and output: at most 1e-9; **error** is the largest relative error.
- **kept**: shares of the original's parameters and MACs. More than 25% of the MACs: the channels that must stay cost
  more; the last column says which.
- **seconds**: plan and apply.
- A row *approximate* has `allow_approximate=True`: channels that a layer norm or its like mixes are cut as well; it is
  exact against the original whose norms mix only what stays.
- Sizes are channels, (frames,) height, width. Two sizes: planned at the first; run, proven and trained at the second.
- *Left alone* counts groups of channels and says why, most channels first. Outputs and the pictures' colours are left
  alone in every network, and not listed.

"""


def table(networks: Sequence[Network], rows: Mapping[str, Row], settings: str, field: bool = False) -> str:
    """The whole page, from the rows by `Network.key`; of the matrix, or of other people's libraries."""
    listed = [one for network in networks for one in (network, replace(network, approximate=True))
              if one.key in rows or not one.approximate]
    title = _FIELD_TITLE.format(versions=_versions(networks)) if field else _TITLE
    parts = [title, _HEAD.format(settings=settings), _summary(listed, rows)]
    for section, members in groupby(listed, key=lambda network: network.section):
        parts.append(f"\n## {section[0].upper()}{section[1:]}\n\n")
        parts.append("| network | size | works | trains | exact | error | parameters kept | MACs kept | "
                     "left alone, and why | seconds |\n|---|---|---|---|---|---|--:|--:|---|--:|\n")
        parts += [_line(network, rows.get(network.key)) for network in members]
    if not field:
        parts.append(_left_out())
    return "".join(parts)


def good(row: Row) -> bool:
    """Whether a network does all that it should: a network that does not train uncut is no fault of the cut."""
    trains = row.get("trains") is True or row.get("original_trains", True) is not True
    return bool("error" not in row and row.get("works") and row.get("exact") and trains)


def _versions(networks: Sequence[Network]) -> str:
    """The libraries of the networks, with their versions."""
    return ", ".join(f"{name} {metadata.version(_PACKAGES.get(name, name))}"
                     for name in dict.fromkeys(network.name.partition(":")[0] for network in networks))


_PACKAGES = {"doctr": "python-doctr"}


def _summary(listed: Sequence[Network], rows: Mapping[str, Row]) -> str:
    lines = ["| | networks | not run | work | train | exact | at most 25.5% of the MACs |\n"
             "|---|--:|--:|--:|--:|--:|--:|\n"]
    ordinary = [network for network in listed if not network.approximate]
    approximate = [network for network in listed if network.approximate]
    for name, members in (("as built", ordinary), ("approximate", approximate)):
        known = [rows[network.key] for network in members if network.key in rows]
        counts = [len(members), len(members) - len(known), sum(bool(r.get("works")) for r in known),
                  sum(r.get("trains") is True for r in known), sum(bool(r.get("exact")) for r in known),
                  sum(r.get("macs_kept", 1) <= 0.255 for r in known)]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |\n")
    odd = [network.key for network in listed if network.key in rows and not good(rows[network.key])]
    lines.append(f"\nNot as they should be: {', '.join(odd) if odd else 'none'}.\n")
    return "".join(lines)


def _line(network: Network, row: Row | None) -> str:
    name = network.name.partition(":")[2] + (" *approximate*" if network.approximate else "")
    if row is None:
        return f"| {name} | | not run | | | | | | | |\n"
    # A stage that was not reached is unknown, not failed.
    works = _yes(row, "works") if "error" not in row or "works" in row else "**no**"
    cells = [name, _size(row), works, _yes(row, "trains"), _yes(row, "exact"), _error(row),
             _share(row, "params_kept"), _share(row, "macs_kept"), "; ".join(_remarks(row)),
             f"{row['seconds']:.1f}" if "seconds" in row else ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _yes(row: Row, key: str) -> str:
    if key not in row:
        return "not reached"
    return "yes" if row[key] is True else "**no**"


def _size(row: Row) -> str:
    if "size" not in row:
        return ""
    sizes = dict.fromkeys("x".join(map(str, row[key])) for key in ("size", "proof"))
    return ", ".join(sizes)


def _error(row: Row) -> str:
    found = row.get("error_size")
    return f"{found:.0e}" if isinstance(found, float) else ""


def _share(row: Row, key: str) -> str:
    return f"{row[key]:.1%}" if key in row else ""


def _remarks(row: Row) -> Iterator[str]:
    if "error" in row:
        yield f"**{row['error']}**"
    for key in ("error_size", "trains"):
        if isinstance(row.get(key), str):
            yield f"**{row[key]}**"
    if row.get("original_trains", True) is not True:
        yield "the original does not train on these inputs either"
    reasons = {reason: entry for reason, entry in row.get("frozen", {}).items() if reason != "the network's output"}
    for reason, entry in list(reasons.items())[:3]:
        yield f"{reason} ({entry['groups']})"
    if len(reasons) > 3:
        yield f"other reasons ({sum(entry['groups'] for entry in list(reasons.values())[3:])})"
    yield from (note[:120] for note in row.get("notes", ()))


def _left_out() -> str:
    without = ", ".join(family for family, names in families().items() if not names)
    return ("\n## Not in the table\n\nFamilies of timm without convolutions beyond the patch embedding, for which the "
            f"transformers above stand: {without}.\n")
