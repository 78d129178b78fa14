"""Losses and metrics of every task, against sums by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from torchslim.errors import RequestError, TrainingError
from torchslim.train import evaluate, fit, load_data, metrics
from torchslim.train.tasks import TASKS, task_for, task_named
from torchslim.utils.data import Data


class Says(nn.Module):
    """A model that gives what it is told to, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)
        self.answer = answer

    def forward(self, inputs: Any) -> Any:
        return self.answer


def of(task: str, answer: Any, targets: Any, inputs: Any = None) -> dict[str, float]:
    inputs = torch.zeros(len(targets), 1) if inputs is None else inputs
    return metrics(Says(answer), [(inputs, targets)], task=task)


def test_classification() -> None:
    scores, classes = torch.tensor([[3.0, 1, 0], [0, 2, 1], [1, 0, 2], [5, 0, 0]]), torch.tensor([0, 1, 1, 2])
    found = of("classification", scores, classes)
    # F1 by class: 2·1/(2+1), 2·1/(1+2), 0
    assert found == pytest.approx({"accuracy": 0.5, "F1": (2 / 3 + 2 / 3 + 0) / 3})
    task = task_named("classification", ("a", "b", "c"), label_smoothing=0.2)
    by_hand = -(0.8 * scores.log_softmax(1)[torch.arange(4), classes] + 0.2 * scores.log_softmax(1).mean(1))
    torch.testing.assert_close(task.losses(scores, classes), by_hand)
    torch.testing.assert_close(task.loss(scores, classes), by_hand.mean())
    weighted = task_named("classification", ("a", "b", "c"), class_weights=(1.0, 2.0, 4.0))
    losses, weights = -scores.log_softmax(1)[torch.arange(4), classes], torch.tensor([1.0, 2, 2, 4])
    torch.testing.assert_close(weighted.loss(scores, classes), (losses * weights).sum() / weights.sum())
    heads = {"main": scores, "aux": scores + 1}
    torch.testing.assert_close(task.loss(heads, classes), 1.3 * by_hand.mean())
    assert task.constant_score([0, 1, 1, 2, 1]) == 0.6


def test_several_labels() -> None:
    scores, labels = torch.tensor([[2.0, -1], [-3, 4], [1, 1]]), torch.tensor([[1.0, 0], [1, 1], [0, 1]])
    found = of("multilabel", scores, labels)
    assert found == pytest.approx({"F1": (0.5 + 1.0) / 2, "accuracy": 4 / 6})
    task = task_named("multilabel", ("a", "b"))
    probabilities = scores.sigmoid()
    by_hand = -(labels * probabilities.log() + (1 - labels) * (1 - probabilities).log()).mean(1)
    torch.testing.assert_close(task.losses(scores, labels), by_hand)
    assert task.constant_score(list(labels)) == pytest.approx(of("multilabel", torch.ones(3, 2), labels)["F1"])


def test_segmentation() -> None:
    classes = torch.tensor([[[0, 0, 1], [1, 255, 2]]])
    answers = torch.tensor([[[0, 1, 1], [1, 0, 0]]])
    scores = 9.0 * F.one_hot(answers, 3).permute(0, 3, 1, 2).float()
    # Class 0: one of three in the union; 1: two of three; 2: none of one.
    assert of("segmentation", scores, classes) == pytest.approx(
        {"mIoU": (1 / 3 + 2 / 3 + 0) / 3, "accuracy": 3 / 5}, rel=1e-5)
    task = task_named("segmentation", ("a", "b", "c"))
    pixels = -scores.log_softmax(1).gather(1, classes.clamp(max=2)[:, None])[:, 0][classes != 255]
    torch.testing.assert_close(task.loss(scores, classes), pixels.mean())
    torch.testing.assert_close(task.losses(scores, classes), pixels.mean()[None])
    assert task.constant_score([classes[0]]) == pytest.approx(2 / 5 / 3)
    small = scores[:, :, ::2]  # of another size than the target
    torch.testing.assert_close(task.loss(small, classes), task.loss(
        F.interpolate(small, size=(2, 3), mode="bilinear"), classes))
    one = torch.tensor([[[[-1.0, 2.0]]]])  # one map for two classes
    binary = task_named("segmentation", ("no", "yes"))
    torch.testing.assert_close(binary.loss(one, torch.tensor([[[0, 1]]])),
                               F.binary_cross_entropy_with_logits(one[0, 0], torch.tensor([[0.0, 1.0]])))
    assert of("segmentation", one, torch.tensor([[[0, 1]]]))["mIoU"] == 1.0
    assert float(task.loss(scores, torch.full_like(classes, 255))) == 0.0


def boxes(*corners: tuple[float, ...], labels: tuple[int, ...], scores: tuple[float, ...] = ()) -> dict[str, Tensor]:
    made = {"boxes": torch.tensor(corners, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels)}
    return {**made, "scores": torch.tensor(scores)} if scores else made


def test_detection() -> None:
    wanted = [boxes((0, 0, 10, 10), (20, 20, 40, 40), labels=(1, 1))]
    exact = [boxes((0, 0, 10, 10), (20, 20, 40, 40), labels=(1, 1), scores=(0.9, 0.8))]
    inputs = [torch.zeros(3, 50, 50)]
    assert of("detection", exact, wanted, inputs) == pytest.approx({"mAP": 1.0, "mAP50": 1.0})
    half = [boxes((0, 0, 10, 10), labels=(1,), scores=(0.9,))]  # precision 1 up to a recall of 0.5: 51 of 101 places
    assert of("detection", half, wanted, inputs)["mAP50"] == pytest.approx(51 / 101)
    other = [boxes((0, 0, 10, 10), labels=(2,), scores=(0.9,))]
    assert of("detection", other, wanted, inputs)["mAP"] == 0.0
    task = task_named("detection", ("cat",))
    assert float(task.loss({"a": torch.tensor(1.0), "b": torch.tensor(2.5)}, wanted)) == 3.5
    assert task.model_options == {"num_classes": 2}
    with pytest.raises(TrainingError, match=r"gives list of 1 .* in train mode, wanted its losses by name"):
        task.loss(exact, wanted)


def test_detectors_that_are_called_otherwise_are_refused_with_the_way() -> None:
    model = type("DetectionModel", (nn.Identity,), {"__module__": "ultralytics.nn.tasks"})()
    data = [([torch.rand(3, 8, 8)], [boxes((0, 0, 4, 4), labels=(1,))])]
    for call in (fit, evaluate):
        with pytest.raises(RequestError, match=r"Ultralytics' DetectionModel, .*; give torchslim\.integrations"):
            call(model, data)


def test_key_points() -> None:
    box = (0.0, 0.0, 10.0, 20.0)
    target = [{**boxes(box, labels=(1,)), "keypoints": torch.tensor([[[1.0, 1, 2], [5, 5, 2], [9, 9, 0]]])}]
    near = torch.tensor([[[1.0, 2.5, 1], [5, 9, 1], [0, 0, 1]]])  # within 2 pixels; 4 away; not labelled
    answer = [{**boxes(box, labels=(1,), scores=(0.9,)), "keypoints": near}]
    inputs = [torch.zeros(3, 30, 30)]
    assert of("keypoints", answer, target, inputs)["PCK"] == 0.5
    elsewhere = [{**boxes((15.0, 0, 25, 20), labels=(1,), scores=(0.9,)), "keypoints": near}]
    assert of("keypoints", elsewhere, target, inputs)["PCK"] == 0.0
    nothing = [{**boxes(labels=(), scores=(1.0,)), "scores": torch.zeros(0), "labels": torch.zeros(0).long(),
                "keypoints": torch.zeros(0, 3, 3)}]
    assert of("keypoints", nothing, target, inputs)["PCK"] == 0.0


def test_regression() -> None:
    values, wanted = torch.tensor([[1.0, 2], [2, 2], [4, 5]]), torch.tensor([[1.0, 1], [2, 3], [3, 5]])
    # R2 by value: 1 - 1/2, 1 - 2/8
    assert of("regression", values, wanted) == pytest.approx({"R2": (0.5 + 0.75) / 2, "MAE": 3 / 6})
    task = task_named("regression", ("x", "y"))
    torch.testing.assert_close(task.losses(values, wanted), torch.tensor([0.5, 0.5, 0.5]))
    assert of("regression", torch.tensor([[1.0], [2], [4]]), torch.tensor([[1.0], [2], [3]]))["R2"] == 0.5
    mean = wanted.mean(0, keepdim=True).expand(3, -1)
    assert of("regression", mean, wanted)["R2"] == pytest.approx(task.constant_score([]), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("detection", "keypoints")])
def test_a_student_like_its_teacher_is_not_taught(name: str) -> None:
    task = task_named(name, ("a", "b", "c"))
    shape = (4, 3, 2, 2) if name == "segmentation" else (4, 3)
    teacher, student = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    student.requires_grad = True
    same = teacher.clone().requires_grad_()
    task.distillation(same, teacher, 4.0).backward()
    assert float(same.grad.abs().max()) < 1e-6
    task.distillation(student, teacher, 4.0).backward()
    assert float(student.grad.abs().max()) > 1e-3


@pytest.mark.parametrize("name", list(TASKS))
def test_drawn_data_are_of_their_task(name: str) -> None:
    data = load_data(f"shapes:{name}", size=32)
    task = task_for(data)
    assert task.name == name
    for item in (data.train[0], data.test[3]):
        assert task.target_fault(item[1], item[0].shape) == ""
        guessed = task_for([task.collate([item, item])]).name
        assert guessed == (name if name not in ("multilabel", "regression") else "classification")


def test_targets_that_are_none_of_the_task() -> None:
    shape = (3, 4, 4)
    for name, target, words in (
            ("multilabel", torch.tensor([1.0, 0.5]), "with 0.5, wanted 0 and 1 only"),
            ("multilabel", torch.tensor([1, 0]), "wanted a float tensor of 2"),
            ("segmentation", torch.zeros(4, 5).long(), "wanted class indices, tensor 4x4 int64"),
            ("segmentation", torch.full((4, 4), 2), "a pixel of class 2, wanted 0 to 1, or 255"),
            ("detection", torch.zeros(4), "wanted a dict of tensors: boxes, labels"),
            ("detection", boxes((0, 0, 2, 2), labels=(0,)), "a box of class 0, wanted 1 to 2"),
            ("detection", boxes((2, 0, 2, 2), labels=(1,)), r"the box \[2.0, 0.0, 2.0, 2.0\], wanted x1 < x2"),
            ("keypoints", boxes((0, 0, 2, 2), labels=(1,)), "boxes, labels, keypoints"),
            ("keypoints", {**boxes((0, 0, 2, 2), labels=(1,)), "keypoints": torch.zeros(1, 3, 3).double()},
             "has keypoints tensor 1x3x3 float64, wanted float32"),
            ("regression", torch.tensor([1.0, float("nan")]), "not finite"),
            ("regression", 3, "wanted a float tensor of 2")):
        fault = task_named(name, ("a", "b")).target_fault(target, shape)
        assert words.replace("\\", "") in fault, (name, fault)


def test_tasks_by_name() -> None:
    with pytest.raises(RequestError, match="task 'segmentatoin': no such task; did you mean segmentation"):
        evaluate(Says(torch.zeros(1, 2)), [(torch.zeros(1, 1), torch.zeros(1).long())], task="segmentatoin")
    with pytest.raises(RequestError, match=r"label_smoothing=0.1 found in a task of regression, which has none"):
        task_named("regression", label_smoothing=0.1)
    with pytest.raises(TrainingError, match="no F1 of these outputs and targets"):
        evaluate(Says(torch.zeros(2, 3)), [(torch.zeros(2, 1), torch.zeros(2, 2))], task="multilabel")
    data = Data("mine", [], [], ("a",), (3, 4, 4), task="detection")  # type: ignore[arg-type]
    assert task_for(data, "segmentation").name == "segmentation"
