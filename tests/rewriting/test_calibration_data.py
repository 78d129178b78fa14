"""The data of `lighten`: what is taken, what is kept back to measure on, what is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchslim as ts
from helpers import Calls, conv
from torchslim.errors import RequestError
from torchslim.rewriting import lighten_with_report, regression
from torchslim.rewriting.calibration_data import split_batches
from torchslim.rewriting.regression import RIDGES

IMAGES, LABELS = torch.randn(16, 3, 8, 8), torch.arange(16)


def network() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4))


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8)


def failing() -> Any:
    yield IMAGES
    raise OSError("the disk\nis gone")


@pytest.mark.parametrize(("data", "wanted"), [
    (loader, "batch 0 is list of 2 (tensor 8x3x8x8 float32, tensor 8 int64), on which the model fails: TypeError"),
    (loader, "try data=(x for x, *_ in loader)"),
    (lambda: [(IMAGES, LABELS)], "tuple of 2 (tensor 16x3x8x8 float32, tensor 16 int64)"),
    (lambda: IMAGES, "got tensor 16x3x8x8 float32, wanted an iterable of batches of inputs"),
    (lambda: IMAGES, "try data=[x]"), (lambda: 5, "data: got int 5"), (lambda: "digits", "data: got str 'digits'"),
    (lambda: {"x": IMAGES}, "data: got dict of 'x'"), (lambda: ["a"], "batch 0 is str 'a'"),
    (lambda: [IMAGES, torch.zeros(2, 5, 8, 8)], "batch 1 is tensor 2x5x8x8 float32, on which the model fails: Runtime"),
    (lambda: [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], "batch 0 is tensor 2x3x8x8 uint8, on which"),
    (lambda: [IMAGES, IMAGES[:0]], "batch 1 has an empty tensor 0x3x8x8"),
    (lambda: [IMAGES.log()], "batch 0 has infinite values"),
    (failing, "could not be gone through: OSError: the disk;")])
def test_what_the_model_does_not_take_is_refused_in_one_line(data: Callable[[], Any], wanted: str) -> None:
    with pytest.raises(RequestError) as caught:
        ts.lighten(network(), "separable", data=data())
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(RequestError, match="data: needs a model with weights, and this one is on the meta device"):
        ts.lighten(network().to("meta"), "separable", data=[IMAGES])


@pytest.mark.parametrize(("count", "sizes"), [(2, (1, 1)), (4, (3, 1)), (9, (8, 1)), (10, (8, 2)), (27, (22, 5))])
def test_the_last_fifth_of_the_batches_is_kept_back(count: int, sizes: tuple[int, int]) -> None:
    data = [IMAGES[:1] + place for place in range(count)]
    seen, held = split_batches(network(), iter(data))
    assert (len(seen), len(held)) == sizes
    assert [id(x) for x in (*seen, *held)] == [id(x) for x in data]


def test_a_single_batch_is_parted_where_its_items_are_known() -> None:
    (seen,), (held,) = split_batches(network(), [IMAGES])
    assert isinstance(seen, Tensor)
    assert isinstance(held, Tensor)
    assert (len(seen), len(held)) == (13, 3)
    torch.testing.assert_close(torch.cat([seen, held]), IMAGES)
    for data in ([IMAGES[0]], [IMAGES[:1]], [(IMAGES,)]):
        assert split_batches(network(), data) == (data, [])


def test_data_may_come_from_a_loader_and_leave_the_random_state() -> None:
    model, pictures = network(), DataLoader(IMAGES, 4, shuffle=True)  # type: ignore[arg-type, var-annotated]
    before = torch.random.get_rng_state()
    found = lighten_with_report(model, "separable", data=pictures)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.layers[0].error is not None


@pytest.mark.parametrize("rule", ["separable", "ghost", "grouped:4", "separable:norm"])
def test_the_error_is_that_of_what_is_kept_back_and_a_fit_that_spoils_it_is_dropped(rule: str) -> None:
    model, seen, held = network(), torch.randn(1, 3, 3, 3), torch.randn(8, 3, 8, 8) * 3 + 2
    found = lighten_with_report(model, rule, data=[seen, held])
    with torch.no_grad():
        wanted, given, start = (one[:3](held) for one in (  # type: ignore[index]
            model, found.model.eval(), ts.lighten(model, rule).eval()))
    errors = [float((one - wanted).square().mean().sqrt() / wanted.std()) for one in (given, start)]
    assert found.layers[0].error == pytest.approx(errors[0], rel=1e-3)
    assert errors[0] <= errors[1]


def test_the_ridge_is_the_one_that_is_best_on_what_is_kept_back() -> None:
    """Few inputs in which noise is as large as the rest: the more data, the less the old weights are worth."""
    true, x = torch.randn(4, 30), torch.randn(2000, 30)
    y = x @ true.T + 3 * torch.randn(2000, 4)
    held = [(x[1000:], y[1000:])]
    for count in (40, 1000):
        found = []
        for ridges in (RIDGES, *((ridge,) for ridge in RIDGES)):
            layer = nn.Linear(30, 4)
            nn.init.zeros_(layer.weight)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(regression, "RIDGES", ridges)
                regression.fit_layer(layer, [(x[:count], y[:count])], held)
            found.append(regression.mean_squared_error(layer, held))
        assert found[0] == min(found[1:]) < max(found[1:])


def test_what_varies_too_little_to_be_measured_by_itself_has_an_error_nevertheless() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(1, 1))
    (row,) = lighten_with_report(model, "lowrank:1", data=[torch.randn(3, 8)], only=["1"]).layers
    assert row.error is not None
    assert row.error < 1e-3


def test_a_layer_that_is_kept_back_from_is_measured_on_what_it_was_fitted_to() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x) if len(x) > 2 else x)

    model = Calls(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 4))
    (row,) = lighten_with_report(model, "separable", data=[IMAGES, IMAGES[:1]]).layers
    assert row.error is not None
    assert 0 < row.error < 1
