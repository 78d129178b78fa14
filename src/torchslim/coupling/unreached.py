"""Parameters that no traced run read, and that another run might: tensors of their layers' widths are frozen.

Where the control flow depends on the data, or where the network fails in train mode, a graph shows one of several
possible runs. The layers of the other runs read and make tensors of known widths, but nothing says which tensors: so
every tensor of one of these widths is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchslim.rules.labels import LabelSpace
from torchslim.rules.tracks import Tracks
from torchslim.tracing.graph import Graph


def unreached_parameters(graphs: Sequence[Graph]) -> list[str]:
    """Names of the parameters that no run read and another run might read; none if there is no other run."""
    if len(graphs) > 1 and all(graph.device == "meta" for graph in graphs):
        return []  # neither evaluation nor training reads them, whatever the data
    read = set().union(*(graph.tensors_read() for graph in graphs))
    return [name for name, value in graphs[0].state.items() if value.source == "parameter" and name not in read]


def freeze_widths_of_unreached_layers(space: LabelSpace, graph: Graph, tracks: Mapping[int, Tracks],
                                      names: Sequence[str]) -> None:
    """Freeze every tensor of a graph that unreached parameters may read, or may make in another run.

    Args:
        space: where the labels are frozen.
        graph: the graph.
        tracks: those of its values, by id.
        names: the unreached parameters.
    """
    layer_of_width = {size: name.rpartition(".")[0] or name for name in reversed(names)
                      for size in graph.state[name].shape[:2] if size > 1}
    values = {value.id: value for op in graph.ops for value in (*op.inputs, *op.outputs) if value is not None}
    for value in values.values():
        flattened = value.numel // max(value.shape[0], 1) if value.shape else 0
        for track in tracks.get(value.id, ()):
            sizes = [size for size, varied in zip(value.shape, track.shape, strict=True) if varied > 1]
            width = next((size for size in (*sizes, flattened) if size in layer_of_width), 0)
            if width:
                space.freeze(track, f"as wide as what `{layer_of_width[width]}` meets, which no run read: "
                                    f"{width} channels")


def notes_on_unreached_layers(graphs: Sequence[Graph]) -> list[str]:
    """What to do about layers that no run reached, for the plan's notes."""
    layers = list(dict.fromkeys(sorted(name.rpartition(".")[0] or name for name in unreached_parameters(graphs))))
    if not layers:
        return []
    named = f"no run read {', '.join(layers[:3])}{' and others' if len(layers) > 3 else ''}"
    if any(graph.device == "real" for graph in graphs):  # control flow reads the data: other data may reach them
        return [f"{named}: what is as wide as what they meet stays; give inputs that lead there"]
    return [f"{named}: in train mode the network fails on these inputs, so what is as wide as what they meet stays; "
            "give inputs that it trains on"]
