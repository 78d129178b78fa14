"""How models are called, and what is looked through."""

from __future__ import annotations

import re
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.fx
from torch import Tensor, nn

import torchslim as ts
from torchslim.errors import RequestError, UnsupportedModel
from torchslim.utils.inputs import arguments, map_tensors, tensors_in, unwrap

A, B, C = torch.zeros(1), torch.ones(2), torch.full((3,), 2.0)
Pair = namedtuple("Pair", "left right")


@dataclass
class Answer:
    scores: Tensor
    name: str
    more: list[Tensor]


@pytest.mark.parametrize(("inputs", "args", "kwargs"), [
    (A, (A,), {}),
    ((A, B), (A, B), {}),
    ((A, 3, None), (A, 3, None), {}),
    ([A, B], ([A, B],), {}),
    ({"x": A, "scale": 2}, (), {"x": A, "scale": 2}),
    (OrderedDict(x=A), (), {"x": A}),
    (([{"x": A}],), ([{"x": A}],), {}),
], ids=["tensor", "tuple", "tuple with others", "list", "dict", "ordered dict", "nested"])
def test_the_forms_of_inputs_and_that_they_are_copies(inputs: Any, args: tuple[Any, ...],
                                                      kwargs: dict[str, Any]) -> None:
    copies = arguments(inputs)
    assert repr(copies) == repr((args, kwargs))
    for copy, tensor in zip(tensors_in(copies), tensors_in((args, kwargs)), strict=True):
        assert torch.equal(copy, tensor)
        assert copy.data_ptr() != tensor.data_ptr()


def test_a_tensor_that_comes_twice_is_one_copy() -> None:
    (first, second), _ = arguments((A, A))
    assert first is second


class Picture:
    """An object of a user's own."""

    def __init__(self, image: Tensor) -> None:
        self.image, self.name, self.sizes = image, "p", [image[0]]


def test_an_object_that_holds_tensors_is_the_one_argument() -> None:
    picture = Picture(B)
    (copy,), keywords = arguments(picture)
    assert keywords == {}
    assert isinstance(copy, Picture)
    assert copy is not picture
    assert (copy.name, torch.equal(copy.image, B), torch.equal(copy.sizes[0], B[0])) == ("p", True, True)
    copy.image.zero_()
    assert torch.equal(B, torch.ones(2))


@pytest.mark.parametrize(("inputs", "message"), [
    (224, "inputs: got int, wanted a tensor, a tuple"),
    (None, "inputs: got NoneType"),
    ("x", "inputs: got str"),
    ((), "inputs: no tensor in them"),
    ([], "inputs: no tensor in them"),
    ({}, "inputs: no tensor in them"),
    ((1, 3, 224, 224), "inputs: no tensor in them; try torch.randn"),
])
def test_other_inputs_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        arguments(inputs)


def test_tensors_in_order_from_any_nest() -> None:
    tree = {"a": (A, [B, {"c": C}]), "n": 3, "d": Answer(A, "x", [B]), "p": Pair(C, None), "kind": Answer}
    assert [id(t) for t in tensors_in(tree)] == [id(t) for t in (A, B, C, A, B, C)]


def test_map_tensors_keeps_the_nest() -> None:
    tree = (Pair(A, "s"), [B, 1], {"x": C}, OrderedDict(y=A))
    mapped = map_tensors(lambda t: t + 1, tree)
    assert isinstance(mapped[0], Pair)
    assert mapped[0].right == "s"
    assert type(mapped[3]) is OrderedDict
    assert [t.tolist() for t in tensors_in(mapped)] == [[1.0], [2.0, 2.0], [3.0] * 3, [1.0]]
    assert A.tolist() == [0.0]


def test_wrappers_are_looked_through() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    assert unwrap(model) is model
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model  # type: ignore[arg-type]
    assert unwrap(nn.DataParallel(torch.compile(model))) is model  # type: ignore[arg-type]


def test_a_module_of_that_attribute_name_is_no_wrapper() -> None:
    class Named(nn.Module):
        _orig_mod = None

    model = Named()
    assert unwrap(model) is model


@pytest.mark.parametrize("script", [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(1, 1, 3, 3))],
                         ids=["scripted", "traced"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_models_are_refused_by_name(script: Any) -> None:
    scripted = script(nn.Sequential(nn.Conv2d(1, 2, 1)))
    with pytest.raises(UnsupportedModel, match=r"model: \w+ is a scripted module.*give the nn.Module"):
        unwrap(scripted)
    with pytest.raises(UnsupportedModel, match="scripted"):
        unwrap(nn.DataParallel(scripted))


@pytest.mark.parametrize("model", [None, "resnet18", nn.Module, lambda x: x, torch.zeros(1)])
def test_what_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(UnsupportedModel, match=r"wanted a torch\.nn\.Module"):
        unwrap(model)


class Predictor(nn.Module):
    """A wrapper that is called on paths, and trains where `train` is asked for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network

    def __call__(self, source: Any, **options: Any) -> list[str]:
        return [str(source)]

    def train(self, mode: bool = True, **options: Any) -> Predictor:
        if mode:
            raise RuntimeError("trains")
        return self


class PathReader(Predictor):
    def __call__(self, *args: Any) -> Any:
        return nn.Module.__call__(self, *args)

    def forward(self, source: Any) -> Any:
        return source.read()


class Pipeline:
    def __init__(self, network: nn.Module) -> None:
        self.network = network


class Trainer(Pipeline):
    @property
    def model(self) -> nn.Module:
        return self.network


@pytest.mark.parametrize(("wrapper", "said"), [
    (Predictor, "Predictor has no forward of its own, it wraps a network; give its `.model`"),
    (PathReader, "or give its `.model` if it wraps a network"),
    (Pipeline, "got Pipeline, wanted a torch.nn.Module; its `.network` is one, give that"),
    (Trainer, "got Trainer, wanted a torch.nn.Module; its `.model` is one, give that")])
@pytest.mark.parametrize("call", [partial(ts.plan, macs=0.5), partial(ts.prune, macs=0.5), ts.profile, ts.groups])
def test_wrappers_of_networks_are_refused_with_the_network_in_them(call: Any, wrapper: Any, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)) as error:
        call(wrapper(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))), torch.zeros(1, 3, 4, 4))
    assert "\n" not in str(error.value)


def test_what_is_called_by_its_forward_is_no_wrapper() -> None:
    class Lit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    lit, patched = Lit(), nn.Module()
    patched.model, patched.forward = lit.model, lit.model.forward
    for model in (lit, patched, torch.fx.symbolic_trace(lit)):
        assert unwrap(model) is model
