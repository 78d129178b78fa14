"""Options of training: each does what it says, by figures made by hand or by torch."""

from __future__ import annotations

import errno
import json
import math
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from accelerate.tracking import GeneralTracker
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from torchslim.errors import CheckpointError, RequestError, TrainingError
from torchslim.train import Progress, checkpoint, evaluate, fit, fit_gradually
from torchslim.train.log import append_line
from torchslim.train.optimizers import OPTIMIZERS
from torchslim.train.schedule import SCHEDULES, Schedule


class Fixed(nn.BatchNorm2d):
    """A batch norm that keeps its statistics, so that a batch has the same loss in parts."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def net(seed: int = 0, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def items(count: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(count) % 3
    return TensorDataset(torch.rand(count, 3, 6, 6, generator=generator) + targets[:, None, None, None], targets)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_accumulated_batches_make_the_step_of_one_large_batch(precision: str) -> None:
    """With a penalty, which counts once a step, and a last step of fewer batches."""
    options: dict[str, Any] = {"epochs": 3, "lr": 0.05, "sparsity": 0.05, "momentum": 0.0, "precision": precision}
    whole, parts = net(norm=Fixed), net(norm=Fixed)
    expected = fit(whole, items(23), batch_size=12, **options)
    seen: list[Progress] = []
    found = fit(parts, items(23), batch_size=3, accumulate=4, progress=seen.append, **options)
    assert [(at.step, at.steps) for at in seen if at.finished] == [(2, 2)] * 3
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=tolerance, atol=tolerance)
    assert found.loss == pytest.approx(expected.loss, rel=tolerance)


def test_low_precision_is_that_of_the_layers_alone() -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            seen.append((self.weight.dtype, output.dtype))
            return output

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        assert output.dtype == torch.float32
        return F.cross_entropy(output, targets)

    model = nn.Sequential(nn.Flatten(), Spy(108, 3))
    fit(model, items(), epochs=1, precision="bf16", loss=loss)
    assert seen == [(torch.float32, torch.bfloat16)]


def test_gradients_are_clipped() -> None:
    """One step of plain gradient descent goes as far as the norm allows."""
    model = net()
    before = weights(model)
    fit(model, items(), epochs=1, batch_size=24, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.5,
        schedule="constant", clip=1e-3)
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in model.named_parameters()])
    assert float(moved.norm()) == pytest.approx(0.5 * 1e-3, rel=1e-2)


def test_averages_of_weights_and_buffers_are_evaluated_and_kept() -> None:
    model, plain, seen = net(), net(), []

    def watch(at: Progress) -> None:
        if not at.finished:
            seen.append(weights(plain))

    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "held_out": items()}
    fit(plain, items(), progress=watch, **options)
    history = fit(model, items(), ema=0.25, **options)
    for name, found in model.state_dict().items():
        average = seen[0][name]
        for updates, values in enumerate(seen[1:], start=2):
            decay = min(0.25, (1 + updates) / (10 + updates))
            average = decay * average + (1 - decay) * values[name] if found.is_floating_point() else values[name]
        torch.testing.assert_close(found, average)
    assert history.score[-1] == evaluate(model, items())
    assert not equal(model, plain)


def test_weights_of_classes() -> None:
    """Balanced ones are as if every class occurred as often; a wrong number is refused."""
    pictures, targets = items(12).tensors
    rare = TensorDataset(pictures[3:], targets[3:].clone().fill_(0).index_fill_(0, torch.tensor([0, 1, 2]), 2))
    losses = []
    for given in ("balanced", (9 / (2 * 6), 1.0, 9 / (2 * 3))):
        model = net()
        losses.append(fit(model, rare, epochs=1, batch_size=9, class_weights=given).loss[0])
        with torch.no_grad():
            scores = net().train()(rare.tensors[0])
        by_class = [F.cross_entropy(scores[rare.tensors[1] == label], rare.tensors[1][rare.tensors[1] == label])
                    for label in (0, 2)]
        assert losses[-1] == pytest.approx(float(sum(by_class)) / 2, rel=1e-5)
    with pytest.raises(TrainingError, match="class_weights: 2 given, the model has scores of 3 classes"):
        fit(net(), rare, epochs=1, class_weights=(1.0, 2.0))
    with pytest.raises(RequestError, match="'balanced' needs a dataset whose classes can be counted"):
        fit(net(), [(pictures, targets)], class_weights="balanced")


def test_pictures_are_mixed_with_their_classes_whatever_the_workers() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append((x, torch.empty(0)))
            return super().forward(x)

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        seen[-1] = (seen[-1][0], targets)
        return F.cross_entropy(output, targets)

    pictures, targets = items(12).tensors
    flat = TensorDataset(torch.ones_like(pictures) * targets[:, None, None, None], targets)  # a picture shows its class
    for option, whole_pictures in (("mixup", True), ("cutmix", False)):
        fit(Spy(*net()), flat, epochs=2, batch_size=6, loss=loss, **{option: 1.0})
        for mixed, soft in seen:
            torch.testing.assert_close(soft.sum(1), torch.ones(6))
            torch.testing.assert_close(mixed.mean((1, 2, 3)), soft @ torch.arange(3.0))
            assert (mixed.std((1, 2, 3)) < 1e-6).all() == whole_pictures
        seen.clear()
    alone, helped = net(), net()
    for model, workers in ((alone, 0), (helped, 1)):
        fit(model, flat, epochs=1, batch_size=6, mixup=0.5, cutmix=0.5, workers=workers)
    assert equal(alone, helped)
    with pytest.raises(RequestError, match="mixup and cutmix are for classification, the task is regression"):
        fit(net(), items(), mixup=0.2, task="regression")
    with pytest.raises(RequestError, match=r"need a tensor of pictures and .*, a batch is tensor 6x3 "):
        fit(net(), TensorDataset(torch.rand(6, 3), targets[:6]), mixup=0.2)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "timm:lamb"])
def test_every_optimizer_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    whole, resumed = net(), net(3)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 12, "lr": 1e-3, "optimizer": name}
    losses = fit(whole, items(), **options).loss
    assert all(map(math.isfinite, losses))
    fit(net(), items(), checkpoint=tmp_path / "c", progress=lambda at: at.epoch == 2, **options)
    assert fit(resumed, items(), checkpoint=tmp_path / "c", **options).loss == losses
    assert equal(whole, resumed)


def test_schedules() -> None:
    """Rates at the beginning, at the top, and at the end; one cycle as torch has it."""
    found = {name: Schedule(0.4, name, milestones=(0.5,) if name == "step" else ()) for name in SCHEDULES}
    assert {name: schedule.learning_rate(1.0) for name, schedule in found.items()} == pytest.approx(
        {"cosine": 0.0, "step": 0.04, "constant": 0.4, "linear": 0.0, "onecycle": 0.4 / 250_000}, abs=1e-12)
    assert [found["linear"].learning_rate(done) for done in (0.1, 0.2, 0.6)] == pytest.approx([0.2, 0.4, 0.2])
    assert found["constant"].learning_rate(0.0) == 0.4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.4)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=1001, pct_start=0.3)
    for step in range(1000):
        assert found["onecycle"].learning_rate(step / 1000) == pytest.approx(theirs.get_last_lr()[0], abs=5e-3)
        optimizer.step()
        theirs.step()


def test_frozen_parts_stay_to_the_bit_and_can_be_trained_again() -> None:
    model = net()
    before = weights(model)
    fit(model, items(), epochs=1, freeze=("0.*", "1*"))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"5.weight", "5.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(RequestError, match=r"freeze: 'backbone\.\*' matches no parameter; .* '0\.\*'"):
        fit(model, items(), freeze=("backbone.*",))


def test_the_best_epoch_is_kept_and_a_training_without_gain_ends(tmp_path: Path) -> None:
    scored: list[dict[str, Tensor]] = []
    model = net()

    def watch(at: Progress) -> None:
        if at.finished:
            scored.append(weights(model))

    # The held-out classes are wrong, so that training lowers the score.
    pictures, targets = items().tensors
    wrong = TensorDataset(pictures, (targets + 1) % 3)
    options: dict[str, Any] = {"epochs": 9, "lr": 0.2, "batch_size": 8, "held_out": wrong, "patience": 2}
    history = fit(model, items(), keep_best=True, progress=watch, checkpoint=tmp_path / "c", **options)
    best = max(range(len(history.score)), key=lambda epoch: (history.score[epoch], -epoch))
    assert len(history.score) == best + 3 < 9
    assert all(torch.equal(value, scored[best][name]) for name, value in model.state_dict().items())
    again = net(4)
    assert fit(again, items(), keep_best=True, checkpoint=tmp_path / "c", **options) == history
    assert equal(again, model)
    with pytest.raises(RequestError, match="keep_best and patience go by the score on held-out data"):
        fit(net(), items(), patience=3)


def test_a_callback_ends_a_training_with_the_epoch() -> None:
    assert len(fit(net(), items(), epochs=5, batch_size=8, progress=lambda at: at.epoch == 2).loss) == 2


def test_memory_format_and_compilation_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    seen: list[bool] = []
    model = net()
    model[0].register_forward_hook(lambda layer, args, _: seen.append(
        args[0].is_contiguous(memory_format=torch.channels_last)
        and layer.weight.is_contiguous(memory_format=torch.channels_last)))
    fit(model, items(), epochs=1, channels_last=True, compile=True)
    assert seen == [True]
    assert compiled == [model]
    assert model[0].weight.is_contiguous()


def test_every_epoch_is_a_line_and_goes_to_a_tracker(tmp_path: Path) -> None:
    class Own(GeneralTracker):
        name, requires_logging_directory = "own", False

        def __init__(self) -> None:
            super().__init__()
            self.found: list[Any] = []

        tracker = property(lambda self: self.found)

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.found.append(values["lr"])

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            self.found.append((step, values["loss"]))

        def finish(self) -> None:
            self.found.append("end")

    own, path = Own(), tmp_path / "log.jsonl"
    history = fit(net(), items(), epochs=2, held_out=items(), log=path, tracker=own)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(line) for line in lines] == [{"epoch", "loss", "accuracy", "F1", "lr", "seconds"}] * 2
    assert [(line["epoch"], line["loss"], line["accuracy"]) for line in lines] == [
        (1, history.loss[0], history.score[0]), (2, history.loss[1], history.score[1])]
    assert own.found == [0.05, (1, history.loss[0]), (2, history.loss[1]), "end"]
    with pytest.raises(RequestError, match=r"lies in a folder that does not exist; give a file such as log\.jsonl"):
        fit(net(), items(), log=tmp_path / "absent" / "log.jsonl")


@pytest.mark.parametrize(("before", "after"), [
    ('{"epoch": 1}\n', '{"epoch": 1}\n'), ('{"epoch": 1}\n{"epoch": 2, "lo', '{"epoch": 1}\n'),
    ('{"epoch": 1}', '{"epoch": 1}\n'), ('{"ep', ""), ("a note", "a note\n")])
def test_a_line_is_appended_behind_whole_ones(before: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(before)
    append_line(path, {"epoch": 9})
    assert path.read_text() == after + '{"epoch": 9}\n'


def test_a_line_that_finds_no_space_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 1}\n')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        with pytest.raises(CheckpointError, match=r"log\.jsonl: could not be written: OSError"):
            append_line(path, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == '{"epoch": 1}\n'


def test_a_loss_that_is_no_number_names_its_items_and_what_is_kept(tmp_path: Path) -> None:
    pictures, targets = items().tensors
    bad = TensorDataset(pictures.clone().index_fill_(0, torch.tensor([7]), math.inf), targets)
    path = tmp_path / "c"
    with pytest.raises(TrainingError, match=r"epoch 1, step \d, batch \d \(items .*\b7\b.*\): the loss is nan"):
        fit(net(), bad, epochs=2, batch_size=6, accumulate=2)
    fit(net(), items(), epochs=2, batch_size=6, checkpoint=path, progress=lambda at: True)
    with pytest.raises(TrainingError, match=rf"epoch 2, .* {path} has the state after epoch 1$"):
        fit(net(), bad, epochs=2, batch_size=6, checkpoint=path)


def test_a_full_disk_leaves_the_checkpoint_of_the_epoch_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, resumed, path = net(), net(2), tmp_path / "c"
    fit(whole, items(), epochs=3)
    write, calls = checkpoint.save_file, []

    def full(tensors: Any, draft: Path, metadata: Any) -> None:
        calls.append(draft)
        if len(calls) == 2:
            draft.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, draft, metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"^.*could not be written: .*No space left.*; free space.*$"):
        fit(net(), items(), epochs=3, checkpoint=path)
    assert [left.name for left in tmp_path.iterdir()] == ["c"]
    fit(resumed, items(), epochs=3, checkpoint=path)
    assert equal(whole, resumed)


@pytest.mark.parametrize("options", [{"ema": 0.9}, {"patience": 2}, {"freeze": ("0.*",)}])
def test_what_holds_on_to_a_network_is_not_for_one_that_is_cut(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"fit_gradually: {next(iter(options))}=.* stays as it is; train the result"):
        fit_gradually(net(), items(), torch.rand(1, 3, 6, 6), macs=0.5, epochs=6, held_out=items(), **options)


def test_an_unknown_keyword() -> None:
    with pytest.raises(RequestError, match="label_smooting= is no keyword; did you mean label_smoothing"):
        fit(net(), items(), label_smooting=0.1)  # type: ignore[call-arg]
