"""The tape: what it holds, that any control flow is followed, and that nothing stays on the model."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from helpers import Calls, Untouched, conv
from torchslim.errors import RequestError, TraceError, UnsupportedModel
from torchslim.tracing.graph import Graph
from torchslim.tracing.trace import trace

X = torch.randn(1, 3, 8, 8)


def ops(graph: Graph) -> list[tuple[str, str]]:
    """Modules and operations; what kernels set up for themselves aside."""
    return [(op.module, op.name.removeprefix("aten.")) for op in graph.ops if op.name not in ("aten.empty", "aten.t")]


def plain() -> nn.Sequential:
    return nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 2))


# What is on the tape


def test_operations_in_order_with_the_module_they_ran_in() -> None:
    graph = trace(plain(), X)
    assert ops(graph) == [
        ("0", "convolution"), ("1", "native_batch_norm"), ("2", "relu"), ("3", "mean"), ("4", "view"), ("5", "addmm")]
    assert [op.index for op in graph.ops] == list(range(len(graph.ops)))
    assert graph.modules == {"": "Sequential", "0": "Conv2d", "1": "BatchNorm2d", "2": "ReLU",
                             "3": "AdaptiveAvgPool2d", "4": "Flatten", "5": "Linear"}
    assert graph.calls == dict.fromkeys(["", "0", "1", "2", "3", "4", "5"], 1)
    assert (graph.training, graph.device) == (False, "meta")


def test_values_know_shape_dtype_and_where_they_come_from() -> None:
    graph = trace(plain(), X)
    x, weight, bias = graph.ops[0].args[:3]
    assert (x.shape, x.dtype, x.source, x.static) == ((1, 3, 8, 8), torch.float32, "input", False)
    assert (weight.shape, weight.source, weight.name, weight.static) == ((4, 3, 3, 3), "parameter", "0.weight", True)
    assert (bias.name, bias.numel) == ("0.bias", 4)
    assert graph.inputs == (x,)
    assert graph.outputs[0].shape == (1, 2)
    assert graph.outputs[0] is graph.ops[-1].output
    norm = next(op for op in graph.ops if op.name == "aten.native_batch_norm")
    assert norm.args[0] is graph.ops[0].output
    mean = norm.args[3]
    assert (mean.source, mean.name) == ("buffer", "1.running_mean")
    assert graph.tensors_read() == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
                            "5.weight", "5.bias"}
    assert set(graph.state) == {*graph.tensors_read(), "1.num_batches_tracked"}


def test_arguments_by_place_or_keyword() -> None:
    graph = trace(plain(), X)
    op = graph.ops[0]
    assert op.argument(8, "groups") == 1
    assert op.argument(99, "missing", 7) == 7
    assert op.where == "`0` (aten.convolution)"
    assert trace(Calls(lambda _, x: x + 1), X).ops[0].where == "`model` (aten.add)"


def test_the_innermost_module_is_named() -> None:
    inner = Calls(lambda s, x: s.conv(x).relu(), conv=conv(3, 3))
    graph = trace(Calls(lambda s, x: functional.relu(s.body(x) + x), body=inner), X)
    assert ops(graph) == [("body.conv", "convolution"), ("body", "relu"), ("", "add"), ("", "relu")]


def test_a_module_used_twice_is_called_twice_under_one_name() -> None:
    shared = conv(3, 3)
    model = Calls(lambda s, x: s.second(s.first(x)), first=shared, second=shared)
    graph = trace(model, X)
    assert ops(graph) == [("first", "convolution")] * 2
    assert graph.calls["first"] == 2
    assert graph.aliases == {"second.weight": "first.weight", "second.bias": "first.bias"}
    assert graph.ops[0].args[1] is graph.ops[1].args[1]


def test_tied_tensors_are_one_value() -> None:
    model = nn.Sequential(conv(3, 3), conv(3, 3, bias=False))
    model[1].weight = model[0].weight
    graph = trace(model, X)
    assert graph.aliases == {"1.weight": "0.weight"}
    assert graph.ops[1].args[1].name == "0.weight"


def test_a_module_that_is_never_reached() -> None:
    graph = trace(Calls(lambda s, x: s.used(x), used=conv(3, 3), spare=conv(3, 3)), X)
    assert "spare" not in graph.calls
    assert "spare.weight" in graph.state
    assert "spare.weight" not in graph.tensors_read()


def test_functional_calls_and_free_parameters() -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.blur = torch.ones(3, 3)
            self.register_buffer("mean", torch.zeros(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(x, self.kernel * self.blur) - self.mean

    graph = trace(Free(), X)
    scaled = graph.ops[0]
    assert {value.name: value.source for op in graph.ops for value in op.inputs if value.name} == {
        "kernel": "parameter", "blur": "attribute", "mean": "buffer"}
    assert scaled.output.static  # computed of parameters alone
    assert not graph.ops[1].output.static


def test_constants_that_nobody_holds() -> None:
    constant = torch.arange(8.0)
    graph = trace(Calls(lambda _, x: x + constant), X)
    value = graph.ops[0].args[1]
    assert (value.source, value.name, value.static) == ("constant", "", True)


def test_in_place_operations_give_the_same_value() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        y = s.conv(x)
        y.relu_()
        y += 1
        y[:, :2] *= 2
        return y

    graph = trace(Calls(forward, conv=conv(3, 4)), X)
    first = graph.ops[0].output
    assert [op.output is first for op in graph.ops if op.name in ("aten.relu_", "aten.add_")] == [True, True]
    assert graph.outputs == (first,)


def test_in_place_change_of_shape_is_a_new_value() -> None:
    graph = trace(Calls(lambda s, x: s.conv(x).unsqueeze_(0), conv=conv(3, 4)), X)
    assert graph.outputs[0].shape == (1, 1, 4, 8, 8)
    assert graph.outputs[0] is not graph.ops[0].output


def test_operations_with_several_results() -> None:
    graph = trace(Calls(lambda s, x: s.conv(x).chunk(2, 1), conv=conv(3, 4)), X)
    split = graph.ops[-1]
    assert [out.shape for out in split.outputs if out is not None] == [(1, 2, 8, 8)] * 2
    assert graph.outputs == split.outputs


def test_a_tape_cannot_be_changed_by_the_model() -> None:
    """A list that the model reuses is not the tape's."""
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        parts = [x, s.conv(x)]
        y = torch.cat(parts, 1)
        parts.append(x)
        parts.clear()
        return y

    graph = trace(Calls(forward, conv=conv(3, 3)), X)
    assert len(graph.ops[-1].args[0]) == 2


# Inputs


@pytest.mark.parametrize(("forward", "inputs"), [
    (lambda s, x: s.conv(x), X),
    (lambda s, x, y: s.conv(x) + y, (X, X)),
    (lambda s, x, scale: s.conv(x) * scale, (X, 2)),
    (lambda s, xs: torch.stack([s.conv(x) for x in xs]), [X, X]),
    (lambda s, pairs: s.conv(pairs[0]["image"]), [{"image": X}]),
    (lambda s, *, image, mask=None: s.conv(image) * mask, {"image": X, "mask": X[:, :1]}),
], ids=["tensor", "tuple", "tuple with number", "list", "list of dicts", "keywords"])
def test_every_form_of_inputs(forward: Callable[..., Any], inputs: Any) -> None:
    model = Calls(forward, conv=conv(3, 3))
    graph = trace(model, inputs)
    assert graph.device == "meta"
    assert {value.shape for value in graph.inputs} <= {(1, 3, 8, 8), (1, 1, 8, 8)}
    assert "aten.convolution" in {op.name for op in graph.ops}


@pytest.mark.parametrize("output", [
    lambda y: (y, y + 1), lambda y: {"a": y, "b": [y + 1]}, lambda y: [y, (y + 1,)]])
def test_every_form_of_outputs(output: Callable[[Tensor], Any]) -> None:
    graph = trace(Calls(lambda s, x: output(s.conv(x)), conv=conv(3, 3)), X)
    assert [value.shape for value in graph.outputs] == [(1, 3, 8, 8)] * 2


def test_integer_inputs_are_positions_not_data() -> None:
    model = Calls(lambda s, x: s.table(x).mean(), table=nn.Embedding(5, 4))
    graph = trace(model, torch.tensor([[0, 4]]))
    assert graph.inputs[0].dtype == torch.int64


# Control flow


def test_control_flow_on_shapes_needs_no_data() -> None:
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        for _ in range(x.shape[-1] // 4):
            x = s.conv(x) if x.shape[1] == 3 else x
        return x

    assert trace(Calls(forward, conv=conv(3, 3)), X).device == "meta"
    assert len(trace(Calls(forward, conv=conv(3, 3)), X).ops) == 2


@pytest.mark.parametrize("decide", [
    lambda x: x.mean().item() > 0.5,
    lambda x: bool((x > 0.5).any()),
    lambda x: len(x[x > 0.5]) > 0,
    lambda x: x.flatten().nonzero().numel() > 3,
    lambda x: int(x.sum()) > 0,
    lambda x: torch.equal(x, torch.ones_like(x)),
])
def test_control_flow_on_data_runs_for_real(decide: Callable[[Tensor], bool]) -> None:
    model = Calls(lambda s, x: s.yes(x) if decide(x) else s.no(x), yes=conv(3, 3), no=conv(3, 3))
    for x, taken in ((torch.ones(1, 3, 4, 4), "yes"), (torch.zeros(1, 3, 4, 4), "no")):
        graph = trace(model, x)
        assert graph.device == "real"
        assert graph.calls.keys() == {"", taken}
        assert [op.output.shape for op in graph.ops if op.name == "aten.convolution"] == [(1, 3, 4, 4)]


def test_data_of_plain_constants_may_be_read() -> None:
    """Sizes computed with small tensors are no data of the input."""
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        sizes = torch.linspace(2, 4, 3).round().int().tolist()
        return torch.cat([functional.adaptive_avg_pool2d(s.conv(x), n).flatten(2) for n in sizes], 2)

    assert trace(Calls(forward, conv=conv(3, 3)), X).device == "meta"


def test_a_detector_runs_for_real() -> None:
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3).eval()
    graph = trace(model, [torch.rand(3, 64, 64)])
    assert graph.device == "real"
    assert "torchvision.nms" in {op.name for op in graph.ops}
    assert graph.tensors_read() >= {name for name, _ in model.named_parameters()}


def test_attention_is_seen_in_plain_operations() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    names = {op.name for op in trace(layer, torch.randn(1, 5, 8)).ops}
    assert "aten._transformer_encoder_layer_fwd" not in names
    assert torch.backends.mha.get_fastpath_enabled() == before


# Train mode


def test_train_mode_takes_the_training_branches_and_no_statistics() -> None:
    model = torchvision.models.googlenet(num_classes=5, init_weights=False).eval()
    x = torch.randn(2, 3, 64, 64)
    before = Untouched(model)
    graph = trace(model, x, training=True)
    before.check()
    assert graph.training
    assert {"aux1.fc1", "aux2.fc2"} <= graph.calls.keys()
    assert len(graph.outputs) == 3
    assert "aux1.fc1" not in trace(model, x).calls


def test_train_mode_is_never_run_for_real() -> None:
    model = Calls(lambda s, x: s.norm(x) * x.mean().item(), norm=nn.BatchNorm2d(3))
    before = Untouched(model)
    with pytest.raises(TraceError):
        trace(model, X, training=True)
    before.check()


def test_the_users_own_train_method_is_not_called() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError("called")

    model = Frozen(conv(3, 3))
    trace(model, X)
    trace(model, X, training=True)
    assert model.training


# Nothing stays on the model


def mixed() -> nn.Sequential:
    """Modules in both modes, a frozen weight, a hook of the user's."""
    model = plain()
    model[1].eval()
    model[5].weight.requires_grad_(False)
    model[0].register_forward_hook(lambda *_: None)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model


class Careless(nn.Module):
    """Writes on itself while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 4), nn.BatchNorm2d(4)
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("later", None)
        self.calls, self.last, self.sizes = 0, None, [1]
        self.cache: dict[str, Any] = {"x": None}
        self.history: list[Any] = [None]
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.sizes.append(x.shape[1])
        self.cache["x"] = x
        self.cache["y"] = x
        self.history[0] = x
        self.seen += 1
        self.later = torch.ones(1)
        self.extra = nn.Linear(2, 2)
        self.register_buffer("fresh", torch.ones(2))
        self.register_parameter("free", nn.Parameter(torch.ones(2)))
        del self.norm
        self.train()
        torch.rand(1), numpy.random.rand(), random.random()
        y = self.conv(x)
        if self.fail:
            raise KeyError("on purpose")
        return y


class ReadsData(Careless):
    """The same, and it must run for real."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.sum().item()


@pytest.mark.parametrize("kind", [mixed, Careless, ReadsData])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_nothing_stays_after_success(kind: Callable[[], nn.Module], training: bool) -> None:
    model = kind().train(training)
    if kind is mixed:
        model[1].train(not training)
    before = Untouched(model)
    graph = trace(model, X)
    before.check()
    assert graph.device == ("real" if kind is ReadsData else "meta")


@pytest.mark.parametrize("kind", [Careless, ReadsData])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_nothing_stays_after_an_exception(kind: type[Careless], error: type[BaseException]) -> None:
    model = kind()
    model.fail = True
    if error is KeyboardInterrupt:
        model.conv.register_forward_pre_hook(lambda *_: exec("raise KeyboardInterrupt"))
    before = Untouched(model)
    with pytest.raises(TraceError if error is KeyError else KeyboardInterrupt):
        trace(model, X)
    before.check()
    with pytest.raises(TraceError if error is KeyError else KeyboardInterrupt):
        trace(model, X, training=True)
    before.check()


def test_batch_norm_statistics_are_left_alone_where_the_model_sets_its_own_mode() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.norm.train()
            return self.norm(x) * x.sum().item()

    model = Stubborn()
    before = Untouched(model)
    assert trace(model, X).device == "real"
    before.check()


def test_inputs_are_left_alone() -> None:
    x = torch.randn(1, 3, 8, 8)
    kept = x.clone()
    trace(Calls(lambda s, x: s.conv(x.relu_().add_(1)), conv=conv(3, 3)), x)
    assert torch.equal(x, kept)


def test_random_state_is_left_alone_by_dropout_for_real() -> None:
    model = Calls(lambda s, x: functional.dropout(s.conv(x), 0.5, True) * x.sum().item(), conv=conv(3, 3))
    before = Untouched(model)
    assert trace(model, X).device == "real"
    before.check()


def test_a_traced_model_computes_what_it_did() -> None:
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=4).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        trace(model, x)
        assert torch.equal(model(x), expected)
    copy.deepcopy(model)
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# Where it fails


def test_the_failing_module_is_named() -> None:
    model = nn.Sequential(conv(3, 4), nn.Sequential(nn.ReLU(), conv(5, 4)))
    with pytest.raises(TraceError, match=r"`1\.1` failed while the model was run on the given inputs: RuntimeError: .*"
                                         r"check the inputs' shapes"):
        trace(model, X)


@pytest.mark.parametrize(("inputs", "module"), [
    (torch.randn(1, 4, 8, 8), "0"),
    (torch.randn(1, 3, 8, 8, dtype=torch.float64), "0"),
    (torch.randint(0, 9, (1, 3, 8, 8)), "0"),
    ((X, X), "model"),
    ({"image": X}, "model"),
    ([X], "0"),
], ids=["channels", "dtype", "integers", "two arguments", "wrong keyword", "list"])
def test_wrong_inputs_are_a_trace_error(inputs: Any, module: str) -> None:
    model = plain()
    before = Untouched(model)
    with pytest.raises(TraceError, match=f"^`{module}` failed while"):
        trace(model, inputs)
    before.check()


def test_the_message_is_one_line() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("first line\nsecond line")

    with pytest.raises(TraceError) as caught:
        trace(Calls(forward), X)
    assert "ValueError: first line;" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_inputs_that_are_none_are_refused() -> None:
    with pytest.raises(RequestError, match="inputs: got int"):
        trace(plain(), 3)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="scripted"):
        trace(torch.jit.script(plain()), X)


# Wrappers and devices


def test_wrapped_models_give_the_plain_models_tape() -> None:
    model = plain()
    expected = ops(trace(model, X))
    assert ops(trace(nn.DataParallel(model), X)) == expected
    assert ops(trace(torch.compile(model), X)) == expected  # type: ignore[arg-type]


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = plain()
    graph = trace(model, X)
    assert graph.device == "meta"
    assert graph.outputs[0].shape == (1, 2)
    assert ops(graph) == ops(trace(plain(), torch.randn(1, 3, 8, 8, device="meta")))


def test_a_model_on_the_meta_device_cannot_run_for_real() -> None:
    with torch.device("meta"):
        model = Calls(lambda s, x: s.conv(x) * x.sum().item(), conv=conv(3, 3))
    with pytest.raises(TraceError, match="reads data"):
        trace(model, X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_element_types(dtype: torch.dtype) -> None:
    graph = trace(plain().to(dtype), X.to(dtype))
    assert graph.outputs[0].dtype == dtype


def test_memory_formats() -> None:
    x = X.to(memory_format=torch.channels_last)
    model = Calls(lambda s, x: torch.cat([s.conv(x), x], 1).flatten(1), conv=conv(3, 4))
    graph = trace(model.to(memory_format=torch.channels_last), x)
    assert graph.outputs[0].shape == (1, 7 * 64)


# The meta run's short cuts say what torch says


@pytest.mark.parametrize("function", [
    functional.relu, functional.silu, functional.hardswish, functional.hardsigmoid, functional.hardtanh,
    torch.sigmoid, torch.tanh, functional.gelu, functional.leaky_relu, functional.elu,
    functional.mish, functional.relu6, torch.relu_, functional.softplus,
    lambda x: functional.hardtanh(x, inplace=True), lambda x: functional.elu(x, inplace=True),
    lambda x: torch.cat([x, x]), lambda x: torch.cat([x, x], -1), lambda x: torch.cat([x, x.half()], 1),
    lambda x: torch.cat([torch.empty(0), x], 1), lambda x: torch.cat([x[:, :, ::2], x[:, :, 1::2]], 2),
    lambda x: torch.cat([x.to(memory_format=torch.channels_last)] * 2, 1),
    lambda x: functional.batch_norm(x, torch.zeros(3), torch.ones(3)),
    lambda x: functional.batch_norm(x, torch.zeros(3), torch.ones(3), training=True),
    lambda x: functional.batch_norm(x, None, None, training=True), lambda x: functional.instance_norm(x),
    lambda x: x.mean((2, 3), keepdim=True) * x, lambda x: x * x.mean(1, keepdim=True),
    lambda x: x.mean((2, 3), keepdim=True) + x.mean(1, keepdim=True), lambda x: x.transpose(2, 3).mean(3, True) * x,
    lambda x: x.mean((2, 3), keepdim=True) * x.transpose(2, 3), lambda x: x.mean((2, 3), keepdim=True).half() * x,
    lambda x: torch.ones(3, 1, 1) * x, lambda x: torch.ones(1, 3, 1, 1) * x,
    lambda x: torch.ones(1, 3, 4, 4) * x[..., :1, :1],
    lambda x: functional.linear(x.mean((2, 3)), torch.ones(5, 3), torch.ones(5)),
    lambda x: torch.addmm(torch.ones(1), x.mean((2, 3)), torch.ones(3, 5)),
    lambda x: torch.addmm(torch.ones(1, 5), x.mean((2, 3)), torch.ones(3, 5), beta=2),
    lambda x: torch.addmm(x.mean((2, 3)), torch.ones(1, 3), torch.ones(3, 3)),
])
def test_shapes_types_and_strides_are_those_of_a_real_run(function: Callable[[Tensor], Tensor]) -> None:
    seen: list[Tensor] = []

    def forward(s: nn.Module, x: Tensor) -> Tensor:
        y = function(s.conv(x))
        seen.append(y)
        return y

    model = Calls(forward, conv=conv(3, 3)).eval()
    with torch.no_grad():
        real = model(X)
    graph = trace(model, X)
    assert graph.device == "meta"
    assert (seen[1].shape, seen[1].dtype, seen[1].stride()) == (real.shape, real.dtype, real.stride())
    assert graph.outputs[0].shape == tuple(real.shape)


@pytest.mark.parametrize("sizes", [((1, 3, 4, 4), (1, 3, 5, 4)), ((1, 3, 4, 4), (3, 4, 4))])
def test_what_does_not_fit_together_fails_on_shapes_too(sizes: tuple[tuple[int, ...], ...]) -> None:
    model = Calls(lambda _, a, b: torch.cat([a, b], 1))
    with pytest.raises(TraceError, match=r"Sizes of tensors must match|same number of dimensions"):
        trace(model, tuple(torch.zeros(size) for size in sizes))


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 5), (3, 6)])
def test_a_linear_layer_that_does_not_fit_fails_on_shapes_too(inputs: int, outputs: int) -> None:
    model = Calls(lambda _, x: torch.addmm(torch.ones(5), x.mean((2, 3)), torch.ones(inputs, outputs)))
    with pytest.raises(TraceError):
        trace(model, X)


# Many networks

COMPARED = ("aten.convolution", "aten.addmm", "aten.bmm", "aten.cat", "aten.add", "aten.mul", "aten.native_layer_norm",
            "aten.native_batch_norm", "aten.mean", "aten._softmax")


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "efficientnet_b0",
                                  "densenet121", "convnext_tiny", "swin_t", "vit_b_32"])
def test_the_meta_run_writes_what_the_real_run_writes(name: str) -> None:
    """Operation by operation: same names, same modules, same shapes."""
    model = getattr(torchvision.models, name)(num_classes=4).eval()
    size = 224 if name == "vit_b_32" else 64
    x = torch.randn(1, 3, size, size)

    def lines(meta: bool) -> Counter[tuple[Any, ...]]:
        graph = trace(model, x, meta=meta)
        assert graph.device == ("meta" if meta else "real")
        return Counter((op.name, op.module, op.output.shape) for op in graph.ops if op.name in COMPARED)

    assert lines(True) == lines(False)


def test_a_data_read_whose_failure_the_model_catches_still_runs_for_real() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.conv(x)
        try:
            return y + 1 if y.isfinite().all().item() else y
        except Exception:
            return y

    graph = trace(Calls(forward, conv=conv(3, 3)), X)
    assert graph.device == "real"
    assert ("", "add") in ops(graph)
