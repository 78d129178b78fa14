"""Layers that no run read, where another run might: what they may read or make stays as wide as it is.

Where the data decides which way the network goes, or where it fails in train mode, a tape shows one way of several.
The weights of the other ways say how wide the tensors are that they meet, and nothing says which tensors these are: so
all of these widths stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchslim.rules.labels import LabelSpace, Tracks
from torchslim.tracing.graph import Graph


def unread(graphs: Sequence[Graph]) -> list[str]:
    """Names of the parameters that no run read and another run might read; none where the runs are all there are."""
    if len(graphs) > 1 and all(graph.device == "meta" for graph in graphs):
        return []  # neither evaluation nor training reads them, whatever the data
    found = {name: value for name, value in graphs[0].state.items() if value.source == "parameter"}
    read = set().union(*(graph.tensors_read() for graph in graphs))
    return [name for name in found if name not in read]


def freeze_what_unread_layers_meet(space: LabelSpace, graph: Graph, tracks: Mapping[int, Tracks],
                                   names: Sequence[str]) -> None:
    """Freeze every tensor of a tape that unread parameters may read, or may make in another run.

    Args:
        space: where it is declared.
        graph: the tape.
        tracks: of its values.
        names: the unread parameters.
    """
    layers = {size: name.rpartition(".")[0] or name for name in reversed(names)
              for size in graph.state[name].shape[:2] if size > 1}
    values = {value.id: value for op in graph.ops for value in (*op.inputs, *op.outputs) if value is not None}
    for value in values.values():
        flat = value.numel // max(value.shape[0], 1) if value.shape else 0
        for track in tracks.get(value.id, ()):
            sizes = [size for size, varied in zip(value.shape, track.shape, strict=True) if varied > 1]
            met = next((size for size in (*sizes, flat) if size in layers), 0)
            if met:
                space.freeze(track, f"as wide as what `{layers[met]}` meets, which no run read: {met} channels")


def note(graphs: Sequence[Graph]) -> list[str]:
    """What to do about unread layers, for the plan."""
    layers = list(dict.fromkeys(sorted(name.rpartition(".")[0] or name for name in unread(graphs))))
    if not layers:
        return []
    named = f"no run read {', '.join(layers[:3])}{' and others' if len(layers) > 3 else ''}"
    if any(graph.device == "real" for graph in graphs):  # the network looks at its data: other data may lead elsewhere
        return [f"{named}: what is as wide as what they meet stays; give inputs that lead there"]
    return [f"{named}: in train mode the network fails on these inputs, so what is as wide as what they meet stays; "
            "give inputs that it trains on"]
