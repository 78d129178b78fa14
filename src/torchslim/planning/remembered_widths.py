"""Widths that only code off the traced path reads: exporters' methods, classifiers made anew, lists of features.

No run shows what such code needs. An attribute is updated where it surely names a width that was cut: by its name and
its value among the widths of the layers that its module holds; by what a timm network says of its features; or because
a method that stands in for `forward` (`forward_split`) works again with it. Each update must leave the run at the slim
widths as it is, so that nothing that is calculated with is touched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from types import CodeType
from typing import Any

import numpy as np
from torch import nn

from torchslim.costs.cost_models import Shares
from torchslim.coupling.coupling import Coupling
from torchslim.coupling.labeled_graph import LabeledGraph
from torchslim.errors import TraceError
from torchslim.planning.channel_matching import Cut
from torchslim.rules.declarations import LabeledDim
from torchslim.surgery.cutting import resized
from torchslim.surgery.plans import AttributeUpdate
from torchslim.tracing.graph import Graph, Value, is_within
from torchslim.tracing.runs import retrace
from torchslim.tracing.width_reads import names_in_forward, user_modules
from torchslim.utils.inputs import Inputs, map_tensors, tensors_in
from torchslim.utils.modules import named_modules, names_of_modules

_NAMES = frozenset({
    "c", "c1", "c2", "c_", "dim", "width", "planes", "channels", "features", "filters", "embed_dim", "embedding_dim",
    "hidden_dim", "hidden_size", "hidden_channels", "hidden_features", "d_model", "num_features", "num_channels",
    "num_chs", "num_filters", "n_channels", "n_features", "head_hidden_size", "mid_channels", "mid_chs"})
_INPUT_NAMES = frozenset({"in_channels", "in_features", "in_planes", "in_chs", "in_dim", "c_in"})
_OUTPUT_NAMES = frozenset({"out_channels", "out_features", "out_planes", "out_chs", "out_dim", "c_out"})

Widths = Mapping[int, set[int]]
"""Old width -> the new ones."""


def with_remembered_widths(model: nn.Module, inputs: Inputs, coupling: Coupling, cut: Cut) -> Cut:
    """The cut, with updates of what remembers its widths and no run reads."""
    return _Rememberer(model, inputs, coupling, cut).updated() if cut.kept else cut


class _Rememberer:
    """One network, a cut of it and its run at the slim widths."""

    def __init__(self, model: nn.Module, inputs: Inputs, coupling: Coupling, cut: Cut) -> None:
        self.model, self.inputs, self.coupling, self.cut = model, inputs, coupling, cut
        self.shares: Shares = cut.stays.astype(np.float64)
        self.sizes = {name: {dim: len(kept) // (cut.grouped[name][1] if name in cut.grouped and dim == 1 else 1)
                             for dim, kept in dims.items()} for name, dims in cut.kept.items()}

    def updated(self) -> Cut:
        """The cut with all updates."""
        done = {(update.module, update.attribute) for update in self.cut.attribute_updates}
        found: dict[tuple[str, str], AttributeUpdate] = {}
        for update in (*self._of_classifier(), *self._of_features(), *self._of_layers()):
            if (update.module, update.attribute) not in done and update.new != update.old:
                found.setdefault((update.module, update.attribute), update)
        extra = self._harmless(list(found.values()))
        extra += self._of_substitutes(done | {(update.module, update.attribute) for update in extra}, extra)
        return replace(self.cut, attribute_updates=(*self.cut.attribute_updates, *extra)) if extra else self.cut

    def _of_layers(self) -> Iterator[AttributeUpdate]:
        """By name, where all that a module and its children have of the attribute's value is cut alike."""
        widths: dict[str, dict[int, set[int]]] = {}
        state = self.coupling.graphs[0].state
        for labeled in self.coupling.labeled_dims:
            if state[labeled.name].source == "parameter":
                owner = labeled.name.rpartition(".")[0]
                for path in {owner, owner.rpartition(".")[0]}:
                    widths.setdefault(path, {}).setdefault(len(labeled.labels), set()).add(self._kept(labeled))
        for path, module in named_modules(self.model):
            if type(module).__module__.startswith("torch."):
                continue
            for name, old in module.__dict__.items():
                if type(old) is int and name in _NAMES | _INPUT_NAMES | _OUTPUT_NAMES:
                    new = self._passing(path, name, old) or widths.get(path, {}).get(old, set())
                    if len(new) == 1:
                        yield AttributeUpdate(path, name, old, next(iter(new)))

    def _kept(self, labeled: LabeledDim) -> int:
        return round(float(self.shares[labeled.labels].sum()))

    def _passing(self, path: str, name: str, old: int) -> set[int]:
        """What becomes of a width of what goes into a module, or comes out of it, where the name says which."""
        graph = self.coupling.labeled_graphs[0]
        if name in _OUTPUT_NAMES:
            values = _single_outputs(graph, path)
        elif name in _INPUT_NAMES:
            first = next((op for op in graph.graph.ops if is_within(op, path)), None)
            values = [] if first is None else [value for value in first.inputs if not value.static]
        else:
            return set()
        return set().union(*(self._new_sizes(graph, value).get(old, set()) for value in values))

    def _new_sizes(self, graph: LabeledGraph, value: Value) -> Widths:
        """What becomes of the widths of a value: of its sizes along dimensions that have labels."""
        result: dict[int, set[int]] = {}
        for dim, (old, new) in enumerate(zip(value.shape, graph.shape(value, self.shares), strict=True)):
            if any(track.shape[dim] > 1 for track in graph.tracks.get(value.id, ())):
                result.setdefault(old, set()).add(new)
        return result

    def _of_classifier(self) -> Iterator[AttributeUpdate]:
        """What `reset_classifier` of timm's networks makes a new classifier from: the width that the old one reads."""
        names = names_of_modules(self.model)
        for module, path in names.items():
            classifier = _classifier(module)
            labeled = None if classifier is None else self.coupling.by_dimension.get(
                (f"{names.get(classifier)}.weight", 1))
            for attribute in () if labeled is None else ("num_features", "head_hidden_size"):
                if labeled is not None and module.__dict__.get(attribute) == len(labeled.labels):
                    yield AttributeUpdate(path, attribute, len(labeled.labels), self._kept(labeled))

    def _of_features(self) -> Iterator[AttributeUpdate]:
        """`feature_info` of timm's networks: for each feature the module that makes it, and its channels."""
        graph = self.coupling.labeled_graphs[0]
        for path, module in named_modules(self.model):
            info = module.__dict__.get("feature_info")
            entries, where = (info, "feature_info") if isinstance(info, list) else (
                getattr(info, "info", None), "feature_info.info")
            for index, entry in enumerate(entries if isinstance(entries, list) else ()):
                if not isinstance(entry, dict) or not isinstance(entry.get("num_chs"), int) or "pre" in str(
                        entry.get("hook_type", "")):
                    continue
                inner = str(entry.get("module", ""))
                made = [value for name in (inner, inner.replace(".", "_"))
                        for value in _single_outputs(graph, f"{path}.{name}".strip(".")) if inner]
                new = set().union(*(self._new_sizes(graph, value).get(entry["num_chs"], set()) for value in made))
                if len(new) == 1:
                    yield AttributeUpdate(path, f"{where}.{index}.num_chs", entry["num_chs"], next(iter(new)))

    def _harmless(self, updates: Sequence[AttributeUpdate]) -> list[AttributeUpdate]:
        """The updates that leave the run at the slim widths as it is; those of a class and an attribute together."""
        unread = [update for update in updates if self._is_unread(update)]
        updates = [update for update in updates if update not in unread]
        return unread + self._tried(updates)

    def _is_unread(self, update: AttributeUpdate) -> bool:
        """Whether the network reads no widths, and nothing of this name."""
        return (not self.cut.graphs and self.names_read is not None
                and update.attribute.rpartition(".")[2] not in self.names_read)

    @cached_property
    def names_read(self) -> frozenset[str] | None:
        """The names in the code that the network runs, as far as they are to be had."""
        return names_in_forward(self.model.modules())

    def _tried(self, updates: Sequence[AttributeUpdate]) -> list[AttributeUpdate]:
        """The updates with which runs are as without them."""
        if not updates or self._is_unchanged(self._run(updates)):
            return list(updates)

        def kind(update: AttributeUpdate) -> str:
            return f"{type(self.model.get_submodule(update.module)).__qualname__} {update.attribute}"

        alike = [list(part) for _, part in groupby(sorted(updates, key=kind), kind)]
        return [update for part in alike if self._is_unchanged(self._run(part)) for update in part]

    def _is_unchanged(self, graphs: Sequence[Graph]) -> bool:
        """Whether runs at the slim widths are what they are without an update."""
        # Code that reads no widths calculates with the numbers of before the cut; so no run without updates is needed.
        if not self.cut.graphs and _operations(graphs, shapes=False) == self.before_cut:
            return True
        return _operations(graphs) == self.expected

    @cached_property
    def before_cut(self) -> list[Any]:
        """The operations before the cut, without shapes and other sizes."""
        return _operations(self.coupling.graphs, shapes=False)

    @cached_property
    def expected(self) -> list[Any]:
        """The operations at the slim widths, without updates."""
        return _operations(self.cut.graphs or self._run([]))

    def _run(self, extra: Sequence[AttributeUpdate]) -> tuple[Graph, ...]:
        """The runs at the slim widths with further updates; nothing where they fail."""
        with resized(self.model, self.sizes, (*self.cut.attribute_updates, *extra)):
            try:
                return tuple(retrace(self.model, self.inputs, graph) for graph in self.coupling.graphs)
            except TraceError:
                return ()

    def _of_substitutes(self, done: set[tuple[str, str]], extra: Sequence[AttributeUpdate]) -> list[AttributeUpdate]:
        """Updates with which methods that stand in for `forward` give what it gives, as they did before the cut."""
        methods = dict(_substitutes(self.model))
        options = {path: [update for update in self._options(path, done)
                          if any(update.attribute in code.co_names for code in names.values())]
                   for path, names in methods.items()}
        methods = {path: names for path, names in methods.items() if options[path]}
        works = self._working(methods, {}, ()) if methods else set()
        slim = self._working(methods, self.sizes, (*self.cut.attribute_updates, *extra)) if works else set()
        broken = {path for path, _ in works - slim}
        result: list[AttributeUpdate] = []
        for number in range(max(map(len, options.values()), default=0)):
            tried = [choices[number] for path, choices in options.items() if path in broken and number < len(choices)]
            now = self._working(methods, self.sizes, (*self.cut.attribute_updates, *extra, *tried))
            good = [update for update in tried if all(one in now for one in works if one[0] == update.module)]
            good = self._harmless(good)
            result += good
            broken -= {update.module for update in good}
        return result

    def _options(self, path: str, done: set[tuple[str, str]]) -> Iterator[AttributeUpdate]:
        """Numbers of a module that are widths of what its own operations work on, with each new width."""
        widths: dict[int, set[int]] = {}
        for graph in self.coupling.labeled_graphs:
            for op in graph.graph.ops:
                for value in (*op.inputs, *op.outputs) if op.module == path else ():
                    for old, new in self._new_sizes(graph, value).items() if value is not None else ():
                        widths.setdefault(old, set()).update(new)
        for name, old in self.model.get_submodule(path).__dict__.items():
            if type(old) is int and (path, name) not in done:
                yield from (AttributeUpdate(path, name, old, new) for new in sorted(widths.get(old, ())) if new != old)

    def _working(self, methods: Mapping[str, Iterable[str]], sizes: Mapping[str, Mapping[int, int]],
                 updates: Sequence[AttributeUpdate]) -> set[tuple[str, str]]:
        """The methods that give tensors of the shapes that `forward` gives at these widths."""
        working: set[tuple[str, str]] = set()

        def hook(path: str) -> Callable[..., None]:
            def called(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                for name in methods[path]:
                    try:
                        given = getattr(module, name)(*map_tensors(lambda t: t, args), **kwargs)
                    except Exception:  # whatever it is, the method does not work
                        working.discard((path, name))
                    else:
                        if [t.shape for t in tensors_in(given)] == [t.shape for t in tensors_in(output)]:
                            working.add((path, name))
            return called

        with resized(self.model, sizes, updates):
            handles = [self.model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True)
                       for path in methods]
            try:
                retrace(self.model, self.inputs, self.coupling.graphs[0])
            except TraceError:
                working.clear()
            finally:
                for handle in handles:
                    handle.remove()
        return working


def _classifier(module: Any) -> nn.Module | None:
    """What a network of timm calls its classifier; None where it has none, several, or has lost it."""
    if not any(kind.__module__.startswith("timm.") for kind in type(module).__mro__):
        return None
    try:
        classifier = module.get_classifier()
    except Exception:  # other people's method, in a network that somebody may have taken layers out of
        return None
    return classifier if isinstance(classifier, nn.Module) else None


def _single_outputs(labeled: LabeledGraph, module: str) -> list[Value]:
    """What the calls of a module returned that return one tensor."""
    return [call[0] for call in labeled.graph.module_outputs.get(module, ()) if len(call) == 1]


def _operations(graphs: Sequence[Graph], shapes: bool = True) -> list[Any]:
    """What operations are given; with `shapes` the sizes among it, and the shapes of tensors and results, too."""
    return [[(op.name, _plain(op.args, shapes), _plain(op.kwargs, shapes), shapes and _plain(op.outputs, True))
             for op in graph.ops] for graph in graphs]


def _plain(item: Any, shapes: bool) -> Any:
    """An operation's arguments or results, each tensor's shape in its place; without `shapes` no lists of sizes."""
    if isinstance(item, Value):
        return shapes and item.shape, repr(item.number)
    if isinstance(item, Mapping):
        return [(key, _plain(part, shapes)) for key, part in item.items()]
    if not isinstance(item, list | tuple):
        return repr(item)
    return [_plain(part, shapes) for part in item if shapes or not isinstance(part, int)]


def _substitutes(model: nn.Module) -> Iterator[tuple[str, dict[str, CodeType]]]:
    """The code of people's own methods that take what `forward` takes and are called like it: `forward_split`."""
    names = names_of_modules(model)
    for module in user_modules(names):
        kind: Any = type(module)
        wanted = list(inspect.signature(kind.forward).parameters)
        codes = {name: method.__code__ for name in dir(kind) if name.startswith("forward_")
                 and inspect.isfunction(method := getattr(kind, name))
                 and list(inspect.signature(method).parameters) == wanted}
        if codes:
            yield names[module], codes
