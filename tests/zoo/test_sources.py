"""Specifications, names, factories: what they build, and what is said when they are wrong."""

from __future__ import annotations

import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from torchslim.errors import MissingExtra, RequestError, TorchslimError
from torchslim.store.loading import build, default_input
from torchslim.zoo.sources import Source, create_model, list_models, resolve

FACTORIES = """
    from dataclasses import dataclass
    from torch import nn
    import helper_of_factories

    @dataclass
    class Width:
        value: int

    def net(num_classes=4, width=helper_of_factories.WIDTH):
        return nn.Sequential(nn.Conv2d(3, Width(width).value, 3), nn.Flatten(), nn.LazyLinear(num_classes))

    def plain(depth=1):
        return nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(depth)))

    def anything(**options):
        return plain()

    class Nets:
        small = nn.Identity

    model = nn.Identity()
    number = 7

    def broken():
        raise ValueError("no luck\\nsecond line")

    def text():
        return "a model"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module of factories and a module that it imports."""
    (tmp_path / "factories_for_test.py").write_text(textwrap.dedent(FACTORIES))
    (tmp_path / "helper_of_factories.py").write_text("WIDTH = 5\n")
    monkeypatch.chdir(tmp_path)
    for name in ("factories_for_test", "helper_of_factories", "_torchslim_source_factories_for_test"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)


@pytest.mark.parametrize(("text", "kind", "name", "options"), [
    ("torchvision:resnet18", "torchvision", "resnet18", {}),
    ("resnet18", "torchvision", "resnet18", {}),
    ("mobilenet_v2", "torchslim", "mobilenet_v2", {}),
    ("timm:resnet18", "timm", "resnet18", {}),
    ("test_resnet", "timm", "test_resnet", {}),
    ("torchslim:mobilenet_v2?width=0.5", "torchslim", "mobilenet_v2", {"width": 0.5}),
    ("mobilenet_v1?width=0.5", "torchslim", "mobilenet_v1", {"width": 0.5}),
    ("timm:resnet18.a1_in1k", "timm", "resnet18.a1_in1k", {}),
    ("torchvision:resnet18?num_classes=10&weights=DEFAULT", "torchvision", "resnet18",
     {"num_classes": 10, "weights": "DEFAULT"}),
    ("torchvision:mobilenet_v2?width_mult=0.5&dropout=1e-1&norm_layer=None", "torchvision", "mobilenet_v2",
     {"width_mult": 0.5, "dropout": 0.1, "norm_layer": None}),
    ("a.module:make?flag=True&size=(3, 4)&text=a b&number='7'&signs=%26%3D%25", "module", "a.module:make",
     {"flag": True, "size": (3, 4), "text": "a b", "number": "7", "signs": "&=%"}),
])
def test_specifications_are_read_and_given_back(
        text: str, kind: str, name: str, options: dict[str, object]) -> None:
    source = resolve(text)
    assert source == Source(kind, name, options)
    assert resolve(str(source)) == source
    assert {key: type(value) for key, value in resolve(str(source)).options.items()} == {
        key: type(value) for key, value in options.items()}


@pytest.mark.parametrize(("text", "message"), [
    ("resnet81", "resnet81: no model of that name; did you mean resnet18"),
    ("torchvision:mobilnet_v2", "torchvision:mobilnet_v2: no model of that name; did you mean mobilenet_v2"),
    ("torchvision:quantized_resnet18", "no model of that name"),
    ("timm:hf-hub:somebody/something", "no model of that name"),
    ("qqqqqq", "`torchslim models` lists the names"),
    ("", "names no model"),
    ("weights.pth", "names no model"),
    ("missing.safetensors", "missing.safetensors: no such file"),
    ("missing.py:make", "missing.py: no such file"),
    ("resnet18?num_classes", "option 'num_classes' found, NAME=VALUE wanted"),
    ("resnet18?a=1&a=2", "option 'a=2' found"),
    ("resnet18?2=1", "option '2=1' found"),
])
def test_wrong_specifications_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bare_names_are_ours_then_torchvisions_then_timms(no_download: None) -> None:
    assert type(create_model("mobilenet_v2")).__module__.startswith("torchslim")
    assert type(create_model("torchvision:mobilenet_v2")).__module__.startswith("torchvision")
    assert type(create_model("resnet18")).__module__.startswith("torchvision")
    assert type(create_model("timm:resnet18")).__module__.startswith("timm")
    assert create_model("test_resnet", num_classes=7, in_chans=1)(torch.rand(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_random_weights_download_no_backbone_either(name: str, no_download: None) -> None:
    assert isinstance(create_model(name), nn.Module)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_random_inceptions_come_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(create_model(name), nn.Module)


def test_every_listed_name_is_found_and_none_twice() -> None:
    names = list_models()
    assert names == sorted(set(names))
    assert len(names) > 1000
    assert {"resnet18", "timm:resnet18", "fasterrcnn_resnet50_fpn", "test_resnet"} <= set(names)
    assert {"mobilenet_v2", "torchvision:mobilenet_v2"} <= set(names)
    found = [resolve(name) for name in names]
    assert len({(source.kind, source.name) for source in found}) == len(names)


def test_patterns_choose_names() -> None:
    assert list_models("shufflenet_v2_x*") == [
        f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")]
    assert {"timm:resnet18", "timm:test_resnet"} <= set(list_models("timm:*"))
    assert list_models("no such*") == []


def test_options_behind_a_name_are_for_build() -> None:
    for name in ("mobilenet_v1?width=0.5", "torchvision:resnet18?num_classes=10"):
        with pytest.raises(RequestError, match=r"options found behind a name, keywords wanted, such as create_model\("):
            create_model(name)


def test_an_option_that_the_builder_refuses_is_named() -> None:
    with pytest.raises(RequestError, match=r"^torchvision:resnet18: the builder refused colour='red'"):
        create_model("resnet18", colour="red")
    with pytest.raises(RequestError, match=r"weights='BEST' found, one of DEFAULT, IMAGENET1K_V1 wanted"):
        create_model("resnet18", weights="BEST")
    with pytest.raises(RequestError, match=r"timm:test_resnet: weights='BEST' found"):
        create_model("test_resnet", weights="BEST")


def test_weights_that_cannot_be_fetched_are_one_clear_line(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("network is unreachable\nmore")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(TorchslimError) as caught:
        create_model("torchvision:squeezenet1_1", weights="DEFAULT")
    assert not isinstance(caught.value, RequestError)
    assert str(caught.value) == (
        "torchvision:squeezenet1_1: the weights could not be fetched: OSError: network is unreachable; "
        "try again, or weights=None for random ones")


def trained_state(name: str, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Random weights that torchvision then serves as its trained ones."""
    state = create_model(name, num_classes=num_classes).state_dict()
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *_, **_options: state)
    return state


@pytest.mark.parametrize(("name", "classes", "heads"), [
    ("torchvision:squeezenet1_1", 1000, {"classifier.1"}),
    ("lraspp_mobilenet_v3_large", 21, {"classifier.low_classifier", "classifier.high_classifier"}),
])
def test_trained_weights_take_another_number_of_classes(
        name: str, classes: int, heads: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trained = trained_state(name, classes, monkeypatch)
    state = create_model(name, weights="DEFAULT", num_classes=10).state_dict()
    fresh = {key for key, value in state.items() if not torch.equal(value, trained[key])}
    assert {key.rpartition(".")[0] for key in fresh} == heads
    assert all(state[key].shape[0] == 10 for key in fresh)


def test_heads_that_remember_the_classes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name, image = "ssdlite320_mobilenet_v3_large", torch.rand(3, 320, 320)
    trained_state(name, 91, monkeypatch)
    model = create_model(name, weights="DEFAULT", num_classes=5, score_thresh=0.22).eval()
    with torch.no_grad():
        assert set(model([image])[0]["labels"].tolist()) <= set(range(5))


def test_without_timm_its_names_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchslim.zoo.libraries.find_spec", lambda name: None)
    monkeypatch.setattr("torchslim.zoo.sources.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'torchslim\[timm\]'"):
        create_model("timm:resnet18")
    with pytest.raises(RequestError, match=r"test_resnet: no model of that name.*torchslim\[timm\]"):
        create_model("test_resnet")
    assert "resnet18" in list_models()
    assert "test_resnet" not in list_models()


def test_files_of_ultralytics_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchslim.zoo.ultralytics.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"best\.pt: a file of Ultralytics' holds code, which is not run; name a"):
        resolve("ultralytics:runs/best.pt")
    with pytest.raises(MissingExtra, match=r"pip install 'torchslim\[ultralytics\]'"):
        resolve("ultralytics:yolo11n.yaml")


@pytest.mark.parametrize("place", ["factories_for_test", "factories_for_test.py"])
def test_factories_build_and_leave_the_import_path_as_it_was(folder: Path, place: str) -> None:
    before = list(sys.path)
    model = build(f"{place}:net?width=6", num_classes=3)
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 3)
    assert isinstance(model[0], nn.Conv2d)
    assert model[0].out_channels == 6
    assert isinstance(build(f"{place}:Nets.small"), nn.Identity)
    assert sys.path == before


@pytest.mark.parametrize(("factory", "message"), [
    ("absent", "could not be imported: factories_for_test.py has no 'absent'"),
    ("model", "model is a Identity, wanted a function or class"),
    ("number", "number is a int, wanted a function or class"),
    ("broken", "the factory failed: ValueError: no luck"),
    ("text", "the factory returned a str, wanted a torch.nn.Module"),
    ("net?colour=1", "takes no option colour=1; its options are num_classes, width"),
])
def test_factories_that_make_no_model_are_refused(folder: Path, factory: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        build(f"factories_for_test.py:{factory}")
    assert str(caught.value).startswith("factories_for_test.py:")
    assert message in str(caught.value)
    assert "second line" not in str(caught.value)


def test_a_missing_module_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match=r"^no\.such\.module:make: could not be imported: Module"):
        build("no.such.module:make")


def test_defaults_fill_only_what_is_accepted_and_unset(folder: Path) -> None:
    def after(text: str) -> str:
        return str(resolve(text).with_defaults(num_classes=10))

    assert after("resnet18") == "torchvision:resnet18?num_classes=10"
    assert after("resnet18?num_classes=3") == "torchvision:resnet18?num_classes=3"
    assert after("factories_for_test:net") == "factories_for_test:net?num_classes=10"
    assert after("factories_for_test:anything") == "factories_for_test:anything?num_classes=10"
    assert after("factories_for_test.py:plain?depth=2") == "factories_for_test.py:plain?depth=2"
    saved = Source("saved", "slim.safetensors")
    assert saved.with_defaults(num_classes=10) is saved


def test_without_weights_nothing_is_left_to_fetch() -> None:
    source = resolve("fcn_resnet50?weights=DEFAULT&weights_backbone=DEFAULT&num_classes=3")
    assert str(source.without_weights()) == "torchvision:fcn_resnet50?num_classes=3"


@pytest.mark.parametrize(("text", "size"), [
    ("resnet18", (3, 224, 224)), ("inception_v3", (3, 299, 299)), ("timm:inception_v3", (3, 299, 299)),
    ("test_resnet", (3, 160, 160)), ("timm:test_vit?img_size=96", (3, 96, 96)),
    ("vit_b_16?image_size=64", (3, 64, 64)), ("test_resnet?in_chans=1", (1, 160, 160)),
    ("some.module:make", (3, 224, 224)),
])
def test_default_inputs(text: str, size: tuple[int, int, int]) -> None:
    assert default_input(text) == size
