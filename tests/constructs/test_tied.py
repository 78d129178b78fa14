"""Tied weights, and modules that are called several times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from constructs.cutting import Cut
from helpers import Calls, conv

X = torch.randn(2, 3, 8, 8)


# One tensor under several names


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_two_layers_of_one_weight_read_what_they_make(share: float) -> None:
    model = nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 12), nn.ReLU(), conv(12, 12), nn.ReLU(), conv(12, 4))
    model[4].weight = model[2].weight
    cut = Cut(model, X, macs=share)
    assert cut.slim[4].weight is cut.slim[2].weight
    assert cut.size("2.weight") == cut.size("2.weight", 1) == cut.size("0.weight") == cut.size("4.bias")
    assert cut.slim[4].in_channels == cut.slim[4].out_channels == cut.size("0.weight")


def test_two_branches_of_one_weight_and_bias() -> None:
    model = Calls(lambda s, x: s.out(torch.cat([s.a(x).relu(), s.b(x.flip(2)).tanh()], 1)), a=conv(3, 12),
                  b=conv(3, 12), out=conv(24, 4))
    model.b.weight, model.b.bias = model.a.weight, model.a.bias
    cut = Cut(model, X)
    assert cut.slim.b.weight is cut.slim.a.weight
    assert cut.slim.b.bias is cut.slim.a.bias
    first = cut.kept("a.weight")
    assert cut.kept("out.weight", 1) == (*first, *(12 + one for one in first))


def test_norms_of_one_scale() -> None:
    model = nn.Sequential(conv(3, 12), nn.BatchNorm2d(12), nn.ReLU(), conv(12, 12), nn.BatchNorm2d(12), conv(12, 4))
    model[4].weight = model[1].weight
    cut = Cut(model, X)
    assert cut.slim[4].weight is cut.slim[1].weight
    assert cut.kept("0.weight") == cut.kept("3.weight") == cut.kept("1.weight") == cut.kept("4.running_var")


def test_an_embedding_and_the_layer_that_scores_its_words() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 16)
            self.a, self.b = nn.Conv1d(16, 24, 3, padding=1), nn.Conv1d(24, 16, 3, padding=1)
            self.score = nn.Linear(16, 10, bias=False)
            self.score.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.score(self.b(self.a(self.words(x).mT).relu()).mT)

    cut = Cut(Words(), torch.randint(0, 10, (2, 9)), oracle=False)
    assert cut.slim.score.weight is cut.slim.words.weight
    assert cut.after("words.weight") == (10, cut.size("words.weight", 1))
    assert cut.size("words.weight", 1) == cut.size("a.weight", 1) == cut.size("b.weight") == cut.slim.score.in_features
    assert cut.slim.words.embedding_dim == cut.slim.score.in_features
    assert "picked by position in `words` (aten.embedding)" in {entry.reason for entry in cut.plan.left_alone}


class Mirrored(nn.Module):
    """An autoencoder whose decoder is its encoder, transposed."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.first = nn.Linear(8, 16) if linear else conv(3, 16)
        self.encoder = nn.Linear(16, 24) if linear else conv(16, 24)
        self.bias = nn.Parameter(torch.randn(16))
        self.last = nn.Linear(16, 8) if linear else conv(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(self.first(x).relu()).relu()
        if self.linear:
            return self.last(functional.linear(code, self.encoder.weight.t(), self.bias).relu())
        return self.last(functional.conv_transpose2d(code, self.encoder.weight, self.bias, padding=1).relu())


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear layers"])
def test_a_decoder_that_is_its_encoder_transposed(linear: bool) -> None:
    cut = Cut(Mirrored(linear), torch.randn(5, 8) if linear else X, oracle=False)
    assert cut.size("encoder.weight", 1) == cut.size("first.weight") == cut.size("bias") == cut.size("last.weight", 1)
    assert cut.size("encoder.weight", 0) == cut.size("encoder.bias") < 24


def test_a_parameter_that_the_root_and_a_layer_hold() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 12), conv(12, 12), conv(12, 4)
            self.kernel = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.c(self.b(y) + functional.conv2d(y, self.kernel, padding=1).tanh())

    cut = Cut(Root(), X, oracle=False)
    assert cut.slim.kernel is cut.slim.b.weight
    assert cut.slim.b.weight.shape[:2] == (cut.slim.b.out_channels, cut.slim.b.in_channels) < (12, 12)


# One module, several calls


@pytest.mark.parametrize("times", [2, 4])
@pytest.mark.parametrize("residual", [False, True])
def test_a_cell_that_runs_several_times(times: int, residual: bool) -> None:
    """Weights are shared between the steps, norms are not."""
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = conv(3, 16), conv(16, 4)
            self.cell = nn.Sequential(conv(16, 24), nn.ReLU(), conv(24, 16))
            self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(times))

        def forward(self, x: Tensor) -> Tensor:
            state = self.into(x)
            for norm in self.norms:
                state = norm(self.cell(state)).relu() + (state if residual else 0)
            return self.out(state)

    cut = Cut(Recurrent(), X)
    assert cut.size("cell.0.weight", 1) == cut.size("cell.2.weight", 0) == cut.size("into.weight")
    assert cut.size("cell.0.weight", 0) == cut.size("cell.2.weight", 1) < 24
    assert {cut.kept(f"norms.{i}.running_mean") for i in range(times)} == {cut.kept("into.weight")}


def test_one_head_over_all_levels_of_a_pyramid() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 16), conv(16, 16)
            self.tower = nn.Sequential(conv(16, 20), nn.ReLU(), conv(20, 16), nn.ReLU())
            self.score = conv(16, 4)

        def forward(self, x: Tensor) -> list[Tensor]:
            fine = self.a(x).relu()
            coarse = self.b(functional.max_pool2d(fine, 2)).relu()
            return [self.score(self.tower(level)) for level in (fine, coarse, functional.avg_pool2d(coarse, 2))]

    cut = Cut(Pyramid(), X)
    assert cut.kept("a.weight") == cut.kept("b.weight") == cut.kept("tower.0.weight", 1)
    assert cut.kept("tower.2.weight") == cut.kept("score.weight", 1)
    assert cut.size("tower.0.weight") == cut.size("tower.2.weight", 1)


def test_one_module_twice_in_a_sequence() -> None:
    shared = nn.Sequential(conv(16, 16), nn.BatchNorm2d(16), nn.ReLU())
    cut = Cut(nn.Sequential(conv(3, 16), shared, shared, conv(16, 24), nn.ReLU(), conv(24, 4)), X)
    assert cut.slim[1] is cut.slim[2]
    assert cut.kept("1.0.weight") == cut.kept("1.0.weight", 1) == cut.kept("0.weight")
    assert cut.size("3.weight", 1) == cut.size("0.weight")


def test_one_activation_for_the_whole_network() -> None:
    """A PReLU for all: what one layer loses, every layer loses."""
    act = nn.PReLU(16)
    cut = Cut(nn.Sequential(conv(3, 16), act, conv(16, 16), act, conv(16, 16), act, conv(16, 4)), X)
    assert cut.kept("1.weight") == cut.kept("0.weight") == cut.kept("2.weight") == cut.kept("4.weight", 1)
    assert cut.slim[1].num_parameters == cut.size("1.weight")


def test_a_layer_at_two_resolutions_of_one_input() -> None:
    model = Calls(lambda s, x: s.out(s.a(x) + functional.interpolate(s.a(functional.avg_pool2d(x, 2)), scale_factor=2)),
                  a=nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 12)), out=conv(12, 4))
    cut = Cut(model, X)
    assert cut.size("a.2.weight") == cut.size("out.weight", 1)
    assert cut.size("a.0.weight") == cut.size("a.2.weight", 1)
