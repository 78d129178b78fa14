"""Does a network's code read widths? If not, it runs the same operations at any other widths.

`x.shape`, `x.view(b, groups, -1, h, w)`, `x[:, :32]`: code that asks for a size, or names one, may remember it, and
must be run again at the slim widths. Most networks do none of that: convolutions, norms, activations, additions,
concatenations, poolings and a flatten, which take the sizes as they come. What their slim run will be is then known
without running it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from torchslim.tracing.graph import Op, Value

# Functions that neither return a size nor take one along channels. Anything else counts as a width read.
_LAYERS = ("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear batch_norm prelu "
           "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout")
_ACTIVATIONS = ("relu relu_ relu6 hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ silu silu_ mish "
                "mish_ gelu elu elu_ leaky_relu leaky_relu_ sigmoid sigmoid_ tanh tanh_ softplus softmax log_softmax")
_ARITHMETIC = ("add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__ sub_ mul __mul__ __rmul__ __imul__ "
               "mul_ div __truediv__ __rtruediv__ __itruediv__ div_ neg __neg__ maximum minimum clamp clamp_ exp sqrt "
               "rsqrt square")
_OVER_SPACE = ("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d interpolate upsample "
               "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
               "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")
_MOVING = "cat concat flatten unsqueeze squeeze permute transpose clone detach contiguous mean amax"
_ASKING = "to float double half bfloat16 dim is_floating_point is_contiguous _assert"
_SAFE_FUNCTIONS = frozenset(" ".join((_LAYERS, _ACTIVATIONS, _ARITHMETIC, _OVER_SPACE, _MOVING, _ASKING)).split())
_SAFE_ATTRIBUTES = frozenset({"dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu", "is_meta",
                               "is_quantized", "is_mkldnn", "is_nested", "is_sparse"})


class WidthReadDetector(TorchFunctionMode):
    """Watches every call of torch that a network's own code makes on the meta device.

    `first_width_read` names the first call that reads a width. Code whose calls can't be watched (scripted functions,
    extensions) shows by operations that run outside any watched call: `check_operation` counts them as width reads.
    """

    first_width_read = ""
    _in_torch_call = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.first_width_read:
            name = func.__name__
            if name not in _SAFE_FUNCTIONS and not _is_width_independent_call(name, func, args):
                self.first_width_read = name
        self._in_torch_call = True
        try:
            return func(*args, **kwargs) if kwargs else func(*args)
        finally:
            self._in_torch_call = False

    def check_operation(self, operation: str) -> None:
        """Count an operation that runs outside any watched call as a width read."""
        if not self._in_torch_call and not self.first_width_read:
            self.first_width_read = operation


def _is_width_independent_call(name: str, func: Any, args: Any) -> bool:
    if name == "__get__":
        return func.__self__.__name__ in _SAFE_ATTRIBUTES
    # Activations alone are on the meta device.
    if not args or not getattr(args[0], "is_meta", False):
        return False
    # Size 1 must be the batch: cut dimensions keep at least two.
    if name == "size":
        return len(args) == 2 and args[1] in (0, -args[0].dim()) and args[0].shape[0] == 1
    if name in ("view", "reshape"):
        sizes = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        return len(sizes) == 2 and sizes[1] == -1 and isinstance(sizes[0], int) and sizes[0] == args[0].shape[0] == 1
    if name == "pad":
        return len(args) > 1 and isinstance(args[1], list | tuple) and len(args[1]) <= 2 * (args[0].dim() - 2)
    return False


def reads_widths_otherwise(model: nn.Module, modules: Iterable[nn.Module], ops: list[Op]) -> bool:
    """True if a run may depend on widths in ways that the detector can't watch."""
    modules = list(modules)
    return (_has_hidden_groups(model, ops) or has_parametrizations(modules) or _joins_copies(ops)
            or _reads_layer_widths(modules))


def _has_hidden_groups(model: nn.Module, ops: list[Op]) -> bool:
    """True if a grouped convolution gets its number of groups from elsewhere than a convolution layer of torch."""
    for op in ops:
        if op.name == "aten.convolution" and op.args[8] > 1:
            owner = model.get_submodule(op.module)
            if not isinstance(owner, _ConvNd) or owner.groups != op.args[8]:
                return True
    return False


def _joins_copies(ops: list[Op]) -> bool:
    """True if a list of tensors holds one several times: how often may be a width that no operation shows."""
    lists = (item for op in ops for item in op.args if isinstance(item, list | tuple))
    return any(len({value.id for value in values}) < len(values)
               for values in ([item for item in items if isinstance(item, Value)] for items in lists))


_LIBRARIES = ("torch.", "torchvision.", "timm.", "torchslim.utils.attention")

# Attributes of torch's layers that a cut changes, and that user code may read.
_WIDTH_ATTRIBUTES = frozenset({"in_channels", "out_channels", "groups", "in_features", "out_features", "num_features",
                         "num_channels", "num_groups", "normalized_shape", "num_parameters", "embedding_dim"})


def _reads_layer_widths(modules: Iterable[nn.Module]) -> bool:
    """True if the code of some user-defined module reads a width attribute of a layer."""
    return any(not _WIDTH_ATTRIBUTES.isdisjoint(_names_in_module(module)) for module in user_modules(modules))


def reads_training_flag(modules: Iterable[nn.Module]) -> bool:
    """True if the code of some user-defined module reads its `training` flag, so that it may run other layers then.

    The libraries' modules run the same layers in both modes: dropout and stochastic depth are all that differs.
    """
    return any("training" in _names_in_module(module) for module in user_modules(modules))


def user_modules(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules from outside the well-known libraries, whose code has been reviewed."""
    return (module for module in modules if not type(module).__module__.startswith(_LIBRARIES))


def _names_in_module(module: nn.Module) -> frozenset[str]:
    """The names in a module's code: in its class's methods, and in functions that it holds as attributes."""
    kind: Any = type(module)
    held = [item for item in module.__dict__.values() if isinstance(item, FunctionType)]
    return _names_in_class(kind) | frozenset(name for function in held for name in _names_in_function(function))


@cache
def _names_in_class(kind: Any) -> frozenset[str]:
    """The names in the code of a class's methods, without constructors and methods of well-known libraries."""
    return frozenset(name for base in kind.__mro__ if base is not object and not base.__module__.startswith(_LIBRARIES)
                     for key, item in vars(base).items() if isinstance(item, FunctionType) and key != "__init__"
                     for name in _names_in_function(item))


def names_in_forward(modules: Iterable[nn.Module]) -> frozenset[str] | None:
    """The names in the code that calls of modules run, where all are of well-known libraries and none has hooks.

    None for others: their code may reach functions in ways that names do not show.
    """
    names: set[str] = set()
    for module in modules:
        kind: Any = type(module)
        if not kind.__module__.startswith(_LIBRARIES) or module._forward_hooks or module._forward_pre_hooks:
            return None
        names |= _names_in_forward_of(kind)
    return frozenset(names)


@cache
def _names_in_forward_of(kind: Any) -> frozenset[str]:
    """The names in a class's `forward`, and in the methods, properties and functions that it calls by their names."""
    members = {key: item for base in reversed(kind.__mro__) for key, item in vars(base).items()}
    names: set[str] = set()
    seen: set[Any] = set()
    todo: list[Any] = [members.get("forward")]
    while todo:
        item = todo.pop()
        function = item.fget if isinstance(item, property) else getattr(item, "__func__", item)
        if not isinstance(function, FunctionType) or function in seen or function.__module__.startswith("torch."):
            continue
        seen.add(function)
        for name in _names_in_function(function):
            names.add(name)
            todo += [members.get(name), function.__globals__.get(name)]
    return frozenset(names)


def _names_in_function(function: FunctionType) -> Iterator[str]:
    """The names in a function's code, in that of functions within it, and in that of functions that it closes over."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield from code.co_names
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]
    for cell in function.__closure__ or ():
        try:
            inner = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(inner, FunctionType) and inner is not function:
            yield from _names_in_function(inner)


def has_parametrizations(modules: Iterable[nn.Module]) -> bool:
    """True if some layer has a tensor under `torch.nn.utils.parametrize`, computed on each access."""
    return any("parametrizations" in module._modules for module in modules)
