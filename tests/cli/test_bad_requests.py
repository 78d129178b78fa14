"""Bad requests: one line that repeats the value and says what to try, exit status 2, nothing printed or left behind.

`bad_requests.txt` has a request a line: the command line, then what the line must contain, each after a bar.
"""

from __future__ import annotations

import os
import pickle
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import torchslim
from helpers import Call

ROWS = [tuple(part.strip() for part in line.split(" | "))
        for line in (Path(__file__).parent / "bad_requests.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")]

NETWORKS = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, channels=3, width=8, num_classes=10):
            super().__init__()
            self.first, self.second = nn.Conv2d(channels, width, 3), nn.Conv2d(width, width, 3)
            self.head = nn.Linear(width, num_classes)

        def forward(self, x):
            return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))

    def net(channels=3, width=8, num_classes=10):
        return Net(channels, width, num_classes)

    def needs(depth):
        return Net()

    def broken():
        raise ValueError("no luck")

    def text():
        return "a model"

    def leaves():
        raise SystemExit(0)

    model, number = nn.Identity(), 7

    def no_pair():
        return [1]

    def empty():
        return [], []
"""


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("executed"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with files of many kinds."""
    root = tmp_path_factory.mktemp("requests")
    (root / "net.py").write_text(textwrap.dedent(NETWORKS))
    (root / "typo.py").write_text("def net(:\n")
    for name in ("folder", "dir.safetensors", "dir.py", "dir.onnx", "dir.json", "one_class/only"):
        (root / name).mkdir(parents=True)
    state = nn.Conv2d(3, 4, 3).state_dict()
    save_file(state, root / "foreign.safetensors")
    torchslim.save(nn.Conv2d(3, 4, 3), root / "slim.safetensors")
    for suffix in ("pth", "pt", "ckpt", "bin"):
        torch.save(state, root / f"weights.{suffix}")
    torch.save({"model": Code()}, root / "code.pth")
    torch.save({"epoch": 3}, root / "numbers.pth")
    (root / "plain.pickle").write_bytes(pickle.dumps(Code()))
    for name in ("empty.safetensors", "empty.pth", "empty.onnx", "empty.json", "empty.toml", "empty.py"):
        (root / name).touch()
    for name in ("text.safetensors", "net.onnx", "text.pth", "text.json", "text.toml"):
        (root / name).write_text("some text\n")
    (root / "list.json").write_text("[1]")
    (root / "half.json").write_text('{"first": "half"}')
    (root / "two.json").write_text('{"first": 2}')
    (root / "nan.json").write_text('{"first": NaN}')
    (root / "stranger.json").write_text('{"absent.*": 0.5}')
    (root / "latin.json").write_bytes('{"é": 0.5}'.encode("latin-1"))
    (root / "latin.toml").write_bytes('title = "é"'.encode("latin-1"))
    for name, line in (("name", "importence = 'l2'"), ("scope", "scope = 'unifrom'"), ("kind", "round_to = 1.5"),
                       ("range", "distill = [0.9, 0.1]"), ("share", "macs = 1.5"), ("rate", "finetune_lr = 0"),
                       ("criterion", "importance = ['l2', 'tailor']"), ("twice", "round_to = [8, 8]")):
        (root / f"space-{name}.toml").write_text(line)
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (root / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / "pictures" / f"{name}.png")
    (root / "pictures" / "b" / "1.png").write_text("some text\n")
    (root / "typo.toml").write_text('[settings]\nmodle = "resnet18"\n')
    return root


def listing(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in root.rglob("*") if "__pycache__" not in path.parts and path.is_file()} | {
        str(path.relative_to(root)): (0, 0) for path in root.rglob("*")
        if "__pycache__" not in path.parts and path.is_dir()}


@pytest.mark.parametrize(("command", "wanted"), [(command, wanted) for command, *wanted in ROWS],
                         ids=[command for command, *_ in ROWS])
def test_bad_requests_are_answered_in_one_line(call: Call, folder: Path, command: str, wanted: list[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    before = listing(folder)
    status, out, err = call(*shlex.split(command.replace("\\xff", os.fsdecode(b"\xff"))))
    assert (status, out, err.count("\n"), err[:7]) == (2, "", 1, "error: "), err
    assert [text for text in wanted if text not in err] == [], err
    assert "Traceback" not in err
    assert listing(folder) == before
