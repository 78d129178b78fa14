"""Saved slim models come back as they were; damaged, foreign and untrusted files do not."""

from __future__ import annotations

import doctest
import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import torchslim
from torchslim.errors import CheckpointError, RequestError
from torchslim.store import saving as store
from torchslim.store.header import read_header
from torchslim.store.loading import build, load
from torchslim.store.saving import save
from torchslim.surgery.plans import Plan
from torchslim.zoo.sources import create_model

NAME = "timm:test_resnet?num_classes=10"
IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def settled(model: nn.Module) -> nn.Module:
    """The model in eval mode with batch-norm statistics that differ between channels."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) / 10
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return model.eval()


@pytest.fixture(scope="module")
def cut() -> tuple[nn.Module, Plan]:
    """A slim model and its plan."""
    original = settled(build(NAME))
    plan = torchslim.plan(original, IMAGE, macs=0.5)
    return torchslim.apply(original, plan), plan


@pytest.fixture
def saved(cut: tuple[nn.Module, Plan], tmp_path: Path) -> Path:
    return save(cut[0], tmp_path / "slim.safetensors", plan=cut[1], source=NAME)


class Tied(nn.Module):
    """A layer under two names, a view of a larger tensor, and a buffer that is not stored."""

    blur: Tensor

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.again = self.first
        self.part = nn.Parameter(torch.arange(12.0)[2:8])
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.register_buffer("blur", torch.ones(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(x) * (self.blur * self.part)[:, None, None]


class Blurred(nn.Module):
    """A fixed blur, one filter a channel, between two convolutions."""

    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.last = nn.Conv2d(8, 4, 3)
        self.register_buffer("blur", torch.full((8, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(nn.functional.conv2d(x, self.blur, groups=x.shape[1]))


def test_a_slim_model_comes_back_from_its_file_alone(cut: tuple[nn.Module, Plan], saved: Path) -> None:
    slim, plan = cut
    loaded = load(saved)
    assert not any(module.training for module in loaded.modules())
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in slim.state_dict().items()}
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in build(NAME).parameters())
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), slim(IMAGE))
    header = read_header(saved)
    assert (header.source, header.steps, header.training) == (NAME, (plan,), False)
    assert header.version == torchslim.__version__
    assert all(p.data_ptr() % 16 == 0 for p in loaded.parameters())


def test_the_file_holds_tensors_and_text_only(cut: tuple[nn.Module, Plan], saved: Path) -> None:
    assert set(load_file(saved)) == set(cut[0].state_dict())
    with safe_open(saved, framework="pt") as file:
        assert set(file.metadata()) == {"torchslim"}
        assert json.loads(file.metadata()["torchslim"])["source"] == NAME


def test_loading_leaves_random_numbers_and_the_given_original_alone(saved: Path) -> None:
    original = build(NAME).train()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load(saved)
    loaded = load(saved, model=original)
    assert torch.equal(torch.rand(3), expected)
    assert original.training
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert not loaded.training


def test_without_a_plan_the_given_model_is_not_the_one_filled(tmp_path: Path) -> None:
    path = save(Tied(), tmp_path / "whole.safetensors")
    given = Tied()
    before = given.first.weight.clone()
    loaded = load(path, model=given)
    assert loaded is not given
    assert torch.equal(given.first.weight, before)
    assert not torch.equal(loaded.first.weight, before)


def test_a_slim_of_a_slim_carries_both_plans(
        cut: tuple[nn.Module, Plan], saved: Path, tmp_path: Path) -> None:
    slim, plan = cut
    second = torchslim.plan(slim, IMAGE, params=0.7)
    slimmer = torchslim.apply(slim, second)
    by_file = save(slimmer, tmp_path / "by_file.safetensors", plan=second, source=saved)
    by_hand = save(slimmer, tmp_path / "by_hand.safetensors", plan=[plan, second], source=NAME)
    saved.unlink()
    for path in (by_file, by_hand):
        assert read_header(path).steps == (plan, second)
        with torch.no_grad():
            assert torch.equal(load(path)(IMAGE), slimmer(IMAGE))
    with torch.no_grad():
        assert torch.equal(build(by_file)(IMAGE), slimmer(IMAGE))


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "squeezenet1_1"])
def test_weights_are_not_asked_for_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"{name}?num_classes=10&weights=DEFAULT"
    path = save(create_model(name, num_classes=10), tmp_path / "net.safetensors", source=source)
    assert read_header(path).source == (source if ":" in name else f"torchslim:{source}")

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", refuse)
    load(path)


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    path = save(model, tmp_path / "tied.safetensors")
    assert set(load_file(path)) == {"first.weight", "first.bias", "part", "empty"}
    loaded = load(path, model=Tied())
    assert isinstance(loaded, Tied)
    assert loaded.again.weight is loaded.first.weight
    assert torch.equal(loaded.part, torch.arange(2.0, 8.0))
    assert torch.equal(loaded.first.weight, model.first.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept_of_stored_and_rebuilt_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    path = save(Tied().to(dtype), tmp_path / "half.safetensors")
    loaded = load(path, model=Tied())
    assert isinstance(loaded, Tied)
    assert {loaded.first.weight.dtype, loaded.part.dtype, loaded.blur.dtype} == {dtype}
    assert loaded.again.weight is loaded.first.weight


def test_buffers_that_are_not_stored_are_cut_again(tmp_path: Path) -> None:
    original = Blurred().eval()
    plan = torchslim.plan(original, IMAGE, macs=0.6)
    assert "blur" in plan.kept
    slim = torchslim.apply(original, plan)
    path = save(slim, tmp_path / "blur.safetensors", plan=plan)
    assert "blur" not in load_file(path)
    loaded = load(path, model=Blurred())
    assert isinstance(loaded, Blurred)
    assert loaded.blur.shape[0] == loaded.first.out_channels < 8
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), slim(IMAGE))


# --- damaged, foreign, untrusted ----------------------------------------------------------------------------

def refused(path: Path, model: nn.Module | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, model=model)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def test_missing_and_truncated_files(saved: Path, tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.safetensors")
    whole = saved.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        assert "damaged" in refused(saved)
        with pytest.raises(CheckpointError):
            read_header(saved)
    saved.write_bytes(b"\x80\x04not safetensors at all" * 100)
    assert "damaged" in refused(saved)


def test_one_flipped_bit_is_noticed(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    whole[-1000] ^= 4
    saved.write_bytes(whole)
    assert "checksums differ" in refused(saved)


def test_foreign_and_newer_files(saved: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    assert "not one of torchslim's" in refused(foreign)
    with safe_open(saved, framework="pt") as file:
        raw = json.loads(file.metadata()["torchslim"])
    save_file(load_file(saved), foreign, {"torchslim": json.dumps({**raw, "format": 99})})
    assert "format 99 found, 2 wanted" in refused(foreign)
    save_file(load_file(saved), foreign, {"torchslim": json.dumps({**raw, "buffers": {"x": "load"}})})
    assert "header" in refused(foreign)
    del raw["steps"]
    save_file(load_file(saved), foreign, {"torchslim": json.dumps(raw)})
    assert "missing required field `steps`" in refused(foreign)


def test_another_architecture_is_named_with_both_shapes(saved: Path, tmp_path: Path) -> None:
    text = refused(saved, create_model("timm:test_resnet", num_classes=7))
    assert "made for another model than the given ResNet" in text
    assert "fc.bias: 10 in the file, 7 in the model" in text
    assert "its plan does not fit the given SqueezeNet" in refused(saved, create_model("torchvision:squeezenet1_1"))
    whole = save(Tied(), tmp_path / "whole.safetensors")
    text = refused(whole, Tied(8))
    assert "first.weight: 6x3x3x3 in the file, 8x3x3x3 in the model" in text
    assert "(and 1 more)" in text
    assert "first.weight: 6x3x3x3 in the file, nothing in the model" in refused(whole, nn.Identity())


def test_a_source_that_is_code_runs_only_when_trusted(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = tmp_path / "net_for_test.py"
    factory.write_text(
        "from pathlib import Path\nfrom torch import nn\nPath(__file__).with_suffix('.ran').touch()\n"
        "def make(width=4):\n    return nn.Sequential(nn.Conv2d(3, width, 3))\n")
    monkeypatch.chdir(tmp_path)
    for source in (f"{factory}:make?width=5", "net_for_test:make?width=5"):
        path = save(nn.Sequential(nn.Conv2d(3, 5, 3)), tmp_path / "net.safetensors", source=source)
        with pytest.raises(RequestError, match=r"is code, which would run; give trust_source=True"):
            load(path)
        with pytest.raises(RequestError, match="is code"):
            build(path)
        assert not factory.with_suffix(".ran").exists()
        assert load(path, trust_source=True)[0].out_channels == 5
        assert build(f"{path}?trust_source=True")[0].out_channels == 5
        factory.with_suffix(".ran").unlink()
        assert load(path, model=nn.Sequential(nn.Conv2d(3, 5, 3)))[0].out_channels == 5
        assert not factory.with_suffix(".ran").exists()


def test_without_a_source_the_original_is_asked_for(tmp_path: Path) -> None:
    path = save(Tied(), tmp_path / "tied.safetensors")
    with pytest.raises(RequestError, match=r"load it with model=ORIGINAL"):
        load(path)
    with pytest.raises(RequestError, match=r"meta device"):
        load(path, model=Tied().to("meta"))
    with pytest.raises(RequestError, match=r"takes no option but trust_source"):
        build(path, num_classes=3)


# --- writing ------------------------------------------------------------------------------------------------

def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> object:
            return {"step": 3}

    path = tmp_path / "model.safetensors"
    for model, message in ((nn.Sequential(Extra()), "0._extra_state: extra state of type dict"),
                           (Tied().to("meta"), "part: a tensor on the meta device")):
        with pytest.raises(RequestError, match=message):
            save(model, path)
    with pytest.raises(RequestError, match="no model of that name"):
        save(Tied(), path, source="resnet81")
    for strange, kind in (("plan.json", "str"), ([5], "int"), ({"plan": 1}, "dict")):
        with pytest.raises(RequestError, match=rf"plan={kind} found, a plan or rewritings wanted"):
            save(Tied(), path, plan=strange)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="lies in a folder that does not exist"):
        save(Tied(), tmp_path / "absent" / "model.safetensors")
    with pytest.raises(RequestError, match="is a folder"):
        save(Tied(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("failure", "raised", "message"), [
    (OSError(errno.ENOSPC, "No space left on device"), CheckpointError, "No space left on device"),
    (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
        saved: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException,
        raised: type[BaseException], message: str) -> None:
    before = saved.read_bytes()

    def fail(_tensors: object, path: Path, _metadata: object) -> None:
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(store, "save_file", fail)
    with pytest.raises(raised, match=message):
        save(Tied(), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits on Windows")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from torch import nn
from torchslim.errors import CheckpointError
from torchslim.store.saving import save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save(nn.Conv2d(64, 64, 3), sys.argv[1])
except CheckpointError as error:
    print(error)
"""
    path = tmp_path / "large.safetensors"
    command = [sys.executable, "-c", code, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{path}: could not be written: " in found.stdout
    assert found.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_example_runs() -> None:
    assert doctest.testmod(store) == (0, 6)


# --- tensors that are neither parameters nor buffers --------------------------------------------------------

class Noisy(nn.Module):
    """Plain tensors drawn at random: by themselves, in containers, and one that the first call makes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)
        self.noise, self.rows = torch.randn(16, 1, 1), [torch.randn(16, 1, 1), "text", (torch.randn(4, 1, 1),)]
        self.named, self.late = {"x": torch.randn(4, 1, 1), "y": 2}, None
        self.sizes: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.late is None:
            self.late = torch.randn(4, 1, 1)
        self.sizes.setdefault(str(x.shape), torch.ones(1))  # a cache: a fresh model fills its own
        y = self.b((self.a(x) * self.noise).relu())
        return y * self.rows[2][0] + self.named["x"] * self.late  # type: ignore[no-any-return, index]


def test_plain_tensors_come_back_in_a_freshly_built_model(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = Noisy().eval()
    slim, plan = torchslim.prune(model, IMAGE[:, :, :12, :12], macs=0.5)
    wanted = slim(IMAGE)
    path = save(slim, tmp_path / "slim.safetensors", plan=plan)
    torch.manual_seed(6)
    fresh = Noisy()
    assert torch.equal(load(path, model=fresh)(IMAGE), wanted)
    assert not torch.equal(fresh.noise, model.noise)
    fresh.rows.append(torch.ones(1))
    with pytest.raises(CheckpointError, match=r"made for another model.*rows holds another number of tensors"):
        load(path, model=fresh)


def test_complex_tensors_come_back_or_are_refused_by_name(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 8, 3)
    model.filter = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    again = load(save(model, tmp_path / "x.safetensors"), model=model)
    assert torch.equal(again.filter, model.filter)
    model.double().filter = nn.Parameter(torch.randn(3, dtype=torch.complex128))
    with pytest.raises(RequestError, match="filter: a tensor of complex doubles can't be stored"):
        save(model, tmp_path / "x.safetensors")
