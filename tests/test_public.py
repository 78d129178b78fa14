"""What is public, and what is imported when."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pkgutil import walk_packages

import pytest

import torchslim

PUBLIC = [
    "Plan", "Profile", "Sensitivity", "apply", "blocks", "carry_optimizer", "compensate", "create_model", "distill",
    "errors", "export", "groups", "importance", "integrations", "lighten", "list_models", "load", "measure", "plan",
    "preset", "profile", "prune", "register_rule", "remove_dead", "rewriting", "save", "schedule", "sensitivity",
    "train", "verify", "zoo",
]

HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "openvino", "sklearn", "accelerate",
         "numpy", "safetensors", "rich", "optuna")


def test_the_public_names_are_these_and_all_of_them_work() -> None:
    assert torchslim.__all__ == PUBLIC
    for name in PUBLIC:
        assert getattr(torchslim, name) is not None
        assert name in dir(torchslim)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = torchslim.nonsense


OF_EXTRAS = ("torchslim.integrations.", "torchslim.zoo.ultralytics_detector")  # subclass what they need


def test_no_module_hides_a_public_function() -> None:
    for module in walk_packages(torchslim.__path__, "torchslim."):
        if module.name != "torchslim.__main__" and not module.name.startswith(OF_EXTRAS):
            importlib.import_module(module.name)
    for name in PUBLIC:
        if name not in ("blocks", "errors", "importance", "integrations", "rewriting", "train", "zoo"):
            assert callable(getattr(torchslim, name)), name


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stderr.split()}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded_after("import torchslim; torchslim.__version__").isdisjoint(HEAVY)


def test_the_formulas_need_no_torch() -> None:
    loaded = loaded_after("from torchslim import formulas; formulas.separable(64, 128, 3, (32, 32))")
    assert "torchslim" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", [
    ["--help"], ["--version"], ["prune", "--help"], ["slim", "--help"], ["sweep", "--help"], ["models", "--nonsense"]])
def test_the_command_line_answers_without_torch(command: list[str]) -> None:
    code = f"from torchslim import cli; sys.argv = ['torchslim', *{command}]; cli.main(); sys.stderr.flush()"
    loaded = loaded_after(code)
    assert "torchslim" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_package_runs_as_a_module() -> None:
    for arguments, status in (["--version"], 0), (["nonsense"], 2):
        done = subprocess.run([sys.executable, "-m", "torchslim", *arguments], capture_output=True, text=True)
        assert done.returncode == status
        assert done.stdout == ("" if status else f"torchslim {torchslim.__version__}\n")
        assert done.stderr == ("error: nonsense: no such command; a command comes first, such as "
                               "`torchslim profile nonsense`; `torchslim --help` lists them\n" if status else "")


def test_using_the_core_imports_no_optional_package() -> None:
    code = ("import torch, torchslim; m = torchslim.create_model('squeezenet1_1');"
            "torchslim.profile(m, torch.rand(1, 3, 32, 32)); torchslim.export, torchslim.save, torchslim.measure")
    assert loaded_after(code).isdisjoint({"timm", "onnx", "onnxruntime", "openvino", "sklearn", "accelerate"})


def test_planning_on_shapes_loads_no_compiler() -> None:
    """torch's own meta kernels do, which costs seconds: pools, upsampling, halves, any order of memory, attention."""
    code = """
import torch, torchslim
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.pool, self.up, self.norm = nn.MaxPool2d(3, 2, 1), nn.Upsample(scale_factor=2), nn.BatchNorm2d(16)
        self.head, self.low = nn.Conv2d(16, 4, 1), nn.Conv2d(8, 4, 1)
    def forward(self, x):
        x = self.norm(self.a(self.pool(self.stem(x)))).relu()
        first, second = x.chunk(2, 1)
        x = torch.cat([first + self.b(second), second - first], 1)
        flat = self.up(x).flatten(2)
        weights = (flat.transpose(1, 2) @ flat).softmax(-1)
        wide = (flat @ weights.transpose(1, 2) * 2).view(1, -1, 16, 16)
        return self.head(wide), self.low(torch.stack([first, second], -1).mean(-1))
model = Net().eval()
x = torch.rand(1, 3, 32, 32)
torchslim.plan(model, x, macs=0.7)
"""
    assert loaded_after(code).isdisjoint({"sympy"})  # which it needs
