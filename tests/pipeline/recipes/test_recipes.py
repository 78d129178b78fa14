"""Recipes: every one runs from end to end on shipped data, says what its paper says, and can be changed."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import torchslim as ts
from helpers import DOCS, ROOT, Call, count, counted_macs, in_turn
from torchslim.errors import RequestError
from torchslim.pipeline import recipes
from torchslim.pipeline.runner import phases_of
from torchslim.pipeline.settings import Settings
from torchslim.store.loading import build
from torchslim.train import History

PAGE = DOCS / "recipes.md"
every = pytest.mark.parametrize("name", [name for name in recipes.names() if name != "slimming"])

# The paper's figures, typed from the papers: errors or accuracies, the budget, the network's parameters in millions.
PAPERS = {
    "vgg19-slimming": ("6.34%", "6.20%", {"channels": 0.3}, "20.04"),
    "resnet164-slimming": ("5.42%", "5.08%", {"channels": 0.6}, "1.70"),
    "densenet40-slimming": ("6.11%", "5.19%", {"channels": 0.6}, "1.02"),
    "resnet56-depgraph": ("93.53%", "93.77%", {"macs": 1 / 2.11}, "0.86"),
    "resnet56-depgraph-2.57x": ("93.53%", "93.64%", {"macs": 1 / 2.57}, "0.86"),
    "resnet50-depgraph": ("76.15%", "75.83%", {"macs": 1 - 0.517}, "25.56"),
}
# The same networks with few layers, or without weights to fetch.
SMALL = {
    "vgg19-slimming": "torchslim:vgg_cifar?depth=11&scale=0.5",
    "resnet164-slimming": "torchslim:preresnet_cifar?depth=20&scale=0.5",
    "densenet40-slimming": "torchslim:densenet_cifar?depth=13&scale=0.5",
    "resnet56-depgraph": "torchslim:resnet_cifar?depth=14&shortcut=projected",
    "resnet56-depgraph-2.57x": "torchslim:resnet_cifar?depth=14&shortcut=projected",
    "resnet50-depgraph": "torchvision:resnet50",
}
DIGITS = """
from torch.utils.data import Subset
from torchslim.train import load_data

def few(size=16, seed=0):
    data = load_data("digits", size=size, seed=seed)
    return Subset(data.train, range(96)), Subset(data.test, range(64))
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def digits(tmp_path: Path) -> str:
    """A few of the shipped digits."""
    (tmp_path / "digits.py").write_text(DIGITS)
    return f"{tmp_path / 'digits.py'}:few"


# --- what they say ----------------------------------------------------------------------------------------------------

def test_each_has_its_paper_here() -> None:
    assert set(recipes.names()) == {*PAPERS, "slimming"}
    assert set(PAPERS) == set(SMALL)


@every
def test_each_says_what_its_paper_says(name: str) -> None:
    recipe, (before, after, budget, params) = recipes.read(name), PAPERS[name]
    assert before in recipe.published.values() or before in str(recipe.published)
    assert after in str(recipe.published)
    (resource,) = budget
    assert recipe.settings[resource] == pytest.approx(budget[resource], abs=1e-4)
    with torch.device("meta"):
        model = build(str(recipe.settings["model"]).partition("?weights")[0], num_classes=1000 if "50" in name else 10)
    assert f"{count(model) / 1e6:.2f}" == params
    assert re.search(r"\d{4}: ", recipe.paper)
    assert recipe.url.startswith("https://arxiv.org/abs/")
    assert recipe.differs


@every
def test_each_has_every_setting_and_makes_a_run(name: str, tmp_path: Path) -> None:
    recipe = recipes.read(name)
    assert (recipe.settings["compensate"], recipe.settings["distill"]) == (False, 0)
    needed = {"model", "data", "importance", "round_to", "baseline_epochs", "sparsify_epochs", "finetune_epochs",
              "batch_size", "sparsify_lr", "finetune_lr", "milestones", "weight_decay", "label_smoothing"}
    assert needed <= set(recipe.settings)
    settings = recipe.run(tmp_path)
    assert [phase.name for phase in phases_of(settings)][:2] == ["baseline", "sparsify"]
    short = recipe.run(tmp_path, epochs=1)
    assert short.sparsify_epochs == short.finetune_epochs == 1
    assert recipe.run(tmp_path, epochs=1, finetune_epochs=3).finetune_epochs == 3
    assert short.baseline_epochs == (0 if name == "resnet50-depgraph" else 1)


def test_the_page_says_the_same() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| (.*?) \| ([\d.]+%) \| ([\d.]+%) \| (.*?)\|$", page, re.MULTILINE)
    assert {row[0] for row in rows} == set(PAPERS)
    for name, _, before, after, more in rows:
        assert (before, after) == PAPERS[name][:2]
        published = str(recipes.read(name).published)
        assert all(figure in published for figure in re.findall(r"-?[\d.]+[%M]", more))
    options = set(re.findall(r"(?<![-|])--([a-z][a-z-]*)", page))
    assert options == {"recipe", "out", "data", "seed", "macs", "epochs", "size"}


def test_recipes_are_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "pipeline/recipes/*.toml" in project["tool"]["setuptools"]["package-data"]["torchslim"]


# --- they run ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", in_turn(list(PAPERS), ("resnet56-depgraph",)))
def test_each_runs_from_end_to_end(name: str, digits: str, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "run"
    status, printed, said = call("slim", SMALL[name], "--recipe", name, "--data", digits, "--size", "16", "--epochs",
                                 "1", "--threads", "1", "--no-export", "--out", out)
    record = json.loads((out / "record.json").read_text())
    assert status == record["useless"], said  # one epoch on few pictures may well end at chance level
    assert "Proof: the cut network differs from its silenced original by" in printed
    slim = ts.load(out / "slim.safetensors")
    with torch.device("meta"):
        original = build(SMALL[name], num_classes=10)
    x = torch.empty(1, 3, 16, 16)
    budget = PAPERS[name][2]
    if "macs" in budget:
        assert counted_macs(slim, x) <= budget["macs"] * counted_macs(original, x) + 1
    else:
        widths = [sum(m.weight.shape[0] for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
                  for model in (slim, original)]
        assert widths[0] <= budget["channels"] * widths[1]
        assert widths[0] >= (budget["channels"] - 0.05) * widths[1]
    recipe = recipes.read(name).settings
    for key in ("batch_size", "milestones", "weight_decay", "label_smoothing", "finetune_lr", "sparsify_lr"):
        value = recipe[key]
        assert record["settings"][key] == (list(value) if isinstance(value, tuple) else value)
    # the command of the record asks for the same run, without the recipe
    if name == "resnet164-slimming":
        assert call(*shlex.split(record["command"])[1:])[0] == status


def test_a_recipe_without_a_network_takes_any(tmp_path: Path, call: Call) -> None:
    assert call("slim", "--recipe", "slimming", "--out", tmp_path / "run")[2].startswith("error: slim: no model")
    settings = recipes.read("slimming").run(tmp_path, model="m", data="d", macs=0.5)
    assert (settings.importance, settings.pressing_epochs, settings.compensate, settings.distill) == (
        "bn_scale", 10, False, 0)


def test_settings_reach_the_training(digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchslim.pipeline import context as module
    from torchslim.pipeline.runner import run_slim

    seen: list[tuple[dict[str, Any], torch.Tensor]] = []

    def noted(model: torch.nn.Module, data: object, **options: Any) -> History:
        seen.append((options, next(model.parameters()).detach().clone()))
        return History()

    monkeypatch.setattr(module, "fit", noted)
    base: dict[str, Any] = {"model": "torchslim:resnet_cifar?depth=8", "data": digits, "size": 16, "channels": 0.5,
                            "importance": "bn_scale", "baseline_epochs": 3, "threads": 1, "export": False}
    run_slim(Settings(**base, out=tmp_path / "plain"))
    run_slim(Settings(**base, out=tmp_path / "other", lr=0.2, sparsify_lr=0.3, finetune_lr=0.4, milestones=(0.5,),
                      later_milestones=(0.25, 0.75), weight_decay=0.1, label_smoothing=0.0, fresh=True, batch_size=48))
    asked = [[options[key] for options, _ in seen] for key in (
        "lr", "milestones", "weight_decay", "label_smoothing", "epochs", "batch_size")]
    assert asked == [
        pytest.approx([0.05, 0.1, 0.005, 0.2, 0.3, 0.4]),
        [(), (), (), (0.5,), (0.25, 0.75), (0.25, 0.75)],
        [5e-4] * 3 + [0.1] * 3, [0.1] * 3 + [0.0] * 3, [3, 10, 8] * 2, [64] * 3 + [48] * 3]
    # nothing was trained: the baseline's weights are those that sparsification starts from, or fresh ones
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[3][1], seen[4][1])
    # a step moves a scale by rate x weight / (1 - momentum): past zero in 10 epochs of 2 steps, at the mean rate
    for (options, _), mean, steps in ((seen[1], 0.5, 2), (seen[4], 0.25 + 0.5 / 10 + 0.25 / 100, 2)):
        assert options["sparsity"] * options["lr"] * mean * 10 * steps / 0.1 == pytest.approx(1.15)


def test_a_recipe_of_ones_own(digits: str, tmp_path: Path, call: Call) -> None:
    status, printed, _ = call("recipes", "resnet56-depgraph")
    assert status == 0
    path = tmp_path / "mine.toml"
    path.write_text(printed.replace("macs = 0.4739", "macs = 0.8"))
    assert recipes.read(path).settings["macs"] == 0.8
    assert recipes.read(path).name == "mine"
    out = tmp_path / "run"
    call("slim", SMALL["resnet56-depgraph"], "--recipe", path, "--data", digits, "--size", "16", "--epochs", "1",
         "--params", "0.7", "--threads", "1", "--no-export", "--seed", "3", "--out", out)
    settings = json.loads((out / "record.json").read_text())["settings"]
    assert (settings["params"], settings["macs"], settings["seed"]) == (0.7, None, 3)  # one budget for another


def test_the_list(call: Call) -> None:
    status, printed, _ = call("recipes")
    assert status == 0
    assert [line for line in printed.splitlines() if not line.startswith(" ")] == recipes.names()
    listed = json.loads(call("recipes", "--json")[1])
    assert [entry["name"] for entry in listed] == recipes.names()
    assert json.loads(call("recipes", "vgg19-slimming", "--json")[1])[0]["settings"]["milestones"] == [0.5, 0.75]


# --- what goes wrong --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "message"), [
    ("vgg19-slim", "recipe vgg19-slim: no such recipe; did you mean vgg19-slimming?"),
    ("xyz", "recipe xyz: no such recipe; there are densenet40-slimming, "),
    ("none.toml", r"recipe none\.toml: can't be read \(FileNotFoundError")])
def test_recipes_that_there_are_not(name: str, message: str, call: Call) -> None:
    with pytest.raises(RequestError, match=message):
        recipes.read(name)
    assert call("slim", "--recipe", name, "--out", "run")[0] == 2
    assert call("recipes", name)[0] == 2


@pytest.mark.parametrize(("text", "message"), [
    ("title = ", "can't be read"),
    ("titel = 'a'", "unknown entry 'titel'; wanted title, paper"),
    ("settings = 3", "settings is int, wanted dict"),
    ("title = 'a'", r"no settings; give a table \[settings\]"),
    ("[settings]\nmac = 0.5", "unknown setting 'mac'; did you mean macs"),
    ("[settings]\nout = 'runs'", "unknown setting 'out'"),
    ("[settings]\nbatch_size = '64'", "settings.batch_size: expected `int`, got `str`"),
    ("[settings]\nmilestones = [1, 'x']", "settings.milestones"),
    ("[settings]\nmacs = true", "settings.macs: expected `float | null`, got `bool`"),
])
def test_files_that_are_no_recipes(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        recipes.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("more", "said"), [
    ([], "slim: no model; give MODEL, such as torchvision:resnet18, or a --recipe with one"),
    (["torchvision:resnet18"], "slim: no data; give --data, such as --data digits, or a --recipe with one"),
    (["torchvision:resnet18", "--data", "digits"], "slim: no budget; give --macs 0.4"),
    (["torchvision:resnet18", "--data", "digits", "--macs", "0.5", "--milestones", "half"],
     "--milestones half: wanted shares of a phase, such as 0.5,0.75"),
    (["torchvision:resnet18", "--data", "digits", "--macs", "0.5", "--milestones", "0.75,0.5"],
     "--milestones 0.75,0.5: wanted rising shares of a phase"),
    (["torchvision:resnet18", "--data", "digits", "--macs", "0.5", "--finetune-lr", "0"],
     "--finetune-lr 0.0: wanted a number above 0"),
    (["torchvision:resnet18", "--data", "digits", "--macs", "0.5", "--label-smoothing", "1"],
     "--label-smoothing 1.0: wanted from 0 to below 1"),
    (["torchvision:resnet18", "--data", "digits", "--macs", "0.5", "--fresh", "--sparsify-epochs", "0"],
     "--fresh True: wanted sparsification to start from fresh weights"),
])
def test_runs_that_lack_something(more: list[str], said: str, tmp_path: Path, call: Call) -> None:
    status, _, err = call("slim", *more, "--out", tmp_path / "run")
    assert status == 2
    assert err.startswith(f"error: {said}")
    assert not (tmp_path / "run").exists()


def test_a_saved_model_has_no_fresh_weights(tmp_path: Path, call: Call) -> None:
    path = ts.save(build("torchslim:resnet_cifar?depth=8"), tmp_path / "a.safetensors",
                   source="torchslim:resnet_cifar?depth=8")
    status, _, said = call("slim", path, "--data", "digits", "--macs", "0.5", "--importance", "bn_scale",
                           "--fresh", "--out", tmp_path / "run")
    assert status == 2
    assert "--fresh: " in said
    assert "is a saved model" in said


def test_a_command_repeats_every_setting(tmp_path: Path) -> None:
    settings = Settings(model="m", data="d", out=tmp_path, channels=0.5, milestones=(0.5, 0.75), fresh=True,
                        later_milestones=(0.6,), export=False, weight_decay=0.0, sparsify_lr=0.3,
                        skip_broken=0.02, only=("a.*", "b"), scope='{"a": 0.5}', compensate=False,
                        importance="bn_scale")
    assert settings.command() == (
        "torchslim slim m --data d --channels 0.5 --skip-broken 0.02 --milestones 0.5,0.75 --weight-decay 0.0 "
        "--sparsify-lr 0.3 --later-milestones 0.6 --fresh --importance bn_scale --scope '{\"a\": 0.5}' --only 'a.*' "
        f"--only b --no-compensate --no-export --out {tmp_path}")
