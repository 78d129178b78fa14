"""Does a network's code read widths? Where it never does, it runs at other widths exactly as it ran at its own.

`x.shape`, `x.view(b, groups, -1, h, w)`, `x[:, :32]`: code that asks for a size, or names one, may remember it, and
must be run again at the slim widths. Most networks do none of that: convolutions, norms, activations, additions,
concatenations, poolings and a flatten, which take the sizes as they come. What their slim run will be is then known
without running it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from torchslim.graph import Op

# Functions that neither tell a size nor are told one along channels. Anything else counts as reading widths.
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
_BLIND = frozenset(" ".join((_LAYERS, _ACTIVATIONS, _ARITHMETIC, _OVER_SPACE, _MOVING, _ASKING)).split())
_BLIND_ATTRIBUTES = frozenset({"dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu", "is_meta",
                               "is_quantized", "is_mkldnn", "is_nested", "is_sparse"})


class WidthWatch(TorchFunctionMode):
    """Sees every call of torch that a network's own code makes on the meta device.

    `saw` names the first that reads a width. Code that this can't see (scripted functions, extensions) shows by
    operations that run while no call is under way: `unseen` takes note of one.
    """

    saw = ""
    _under_way = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.saw:
            name = func.__name__
            if name not in _BLIND and not _reads_no_width(name, func, args):
                self.saw = name
        self._under_way = True
        try:
            return func(*args, **kwargs) if kwargs else func(*args)
        finally:
            self._under_way = False

    def unseen(self, operation: str) -> None:
        """Note an operation that ran."""
        if not self._under_way and not self.saw:
            self.saw = operation


def _reads_no_width(name: str, func: Any, args: Any) -> bool:
    if name == "__get__":
        return func.__self__.__name__ in _BLIND_ATTRIBUTES
    # Activations alone are on the meta device: the first size of a weight is a width, that of a batch is none.
    if not args or not getattr(args[0], "is_meta", False):
        return False
    if name == "size":
        return len(args) == 2 and args[1] in (0, -args[0].dim())
    if name in ("view", "reshape"):
        sizes = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        return len(sizes) == 2 and sizes[1] == -1 and isinstance(sizes[0], int) and sizes[0] == args[0].shape[0]
    if name == "pad":
        return len(args) > 1 and isinstance(args[1], list | tuple) and len(args[1]) <= 2 * (args[0].dim() - 2)
    return False


def remembers_groups(model: nn.Module, ops: list[Op]) -> bool:
    """True if a grouped convolution gets its number of groups from elsewhere than a layer of torch's own kind."""
    for op in ops:
        if op.name == "aten.convolution" and op.args[8] > 1:
            owner = model.get_submodule(op.module)
            if not isinstance(owner, _ConvNd) or owner.groups != op.args[8]:
                return True
    return False


def parametrised(modules: Iterable[nn.Module]) -> bool:
    """True if some tensor of a layer is computed from others when it is asked for."""
    return any("parametrizations" in module._modules for module in modules)
