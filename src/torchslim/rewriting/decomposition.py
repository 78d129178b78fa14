"""Light weights that come closest to heavy ones: what trained layers are rewritten with.

All are best fits in the Frobenius norm of the weights (Tucker's is near the best), computed in float64. A plain
convolution's weight has the shape (N, M, k, ...): N filters on M channels; a transposed one's, (M, N, k, ...), comes
with its first dimensions exchanged. Bases are eigenvectors of the smaller Gram matrix, which takes a fraction of the
time of a singular value decomposition; projections on orthonormal bases lose no precision by that.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


def separable(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A depthwise and a pointwise kernel: for each input channel the best product of one filter and N factors.

    Returns:
        (M, 1, k, ...) and (N, M, 1, ...), of which the composition is nearest to `weight` (Eckart and Young 1936, for
        each input channel by itself).
    """
    outputs, inputs, *kernel = weight.shape
    flat = weight.double().transpose(0, 1).reshape(inputs, outputs, prod(kernel))
    filters = torch.linalg.eigh(flat.mT @ flat)[1][:, :, -1:]
    factors = flat @ filters
    # Both parts get the same norm, so that one rate of learning suits both.
    root = factors.norm(dim=1, keepdim=True).sqrt()
    depthwise = (filters * root).reshape(inputs, 1, *kernel)
    pointwise = (factors / root.clamp_min(_TINY))[:, :, 0].T.reshape(outputs, inputs, *[1] * len(kernel))
    return depthwise.to(weight.dtype), pointwise.to(weight.dtype)


def asymmetric(weight: Tensor, middle: int) -> tuple[Tensor, Tensor]:
    """A 1 x k and a k x 1 kernel with `middle` channels between (Jaderberg et al. 2014, section 2.2, scheme 2).

    Returns:
        (middle, M, 1, kw) and (N, middle, kh, 1), of which the composition is nearest to `weight`, (N, M, kh, kw).
    """
    outputs, inputs, height, width = weight.shape
    flat = weight.double().permute(0, 2, 1, 3).reshape(outputs * height, inputs * width)
    first, second = product(flat, middle)
    return (second.reshape(-1, inputs, 1, width).to(weight.dtype),
            first.reshape(outputs, height, -1).transpose(1, 2).unsqueeze(-1).contiguous().to(weight.dtype))


def product(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (rows, rank) and (rank, columns) whose product is nearest; zeros beyond the matrix's own rank."""
    rows, columns = matrix.shape
    if columns > rows:
        second, first = product(matrix.T, rank)
        return first.T, second.T
    full = matrix.double()
    basis = leading(full.T, rank)
    a, b = full.new_zeros(rows, rank), full.new_zeros(rank, columns)
    have = basis.shape[1]
    factors = full @ basis
    root = factors.norm(dim=0).sqrt()
    a[:, :have], b[:have] = factors / root.clamp_min(_TINY), (basis * root).T
    return a.to(matrix.dtype), b.to(matrix.dtype)


def tucker(weight: Tensor, outer: int, inner: int, rounds: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Pointwise, core and pointwise kernels: Tucker-2 by orthogonal iteration (Kim et al. 2016, section 3.1).

    Args:
        weight: (N, M, k, ...).
        outer: channels of the core's result, at most N.
        inner: channels that the core reads, at most M.
        rounds: alternations; each comes nearer.

    Returns:
        (inner, M, 1, ...), (outer, inner, k, ...) and (N, outer, 1, ...).
    """
    outputs, inputs, *kernel = weight.shape
    full = weight.double().reshape(outputs, inputs, -1)
    right = leading(full.transpose(0, 1).reshape(inputs, -1), inner)
    for _ in range(rounds):
        left = leading(torch.einsum("nmk,mr->nrk", full, right).reshape(outputs, -1), outer)
        right = leading(torch.einsum("nmk,nr->mrk", full, left).reshape(inputs, -1), inner)
    core = torch.zeros(outer, inner, *kernel, dtype=full.dtype, device=full.device)
    core += torch.einsum("nmk,na,mb->abk", full, left, right).reshape(core.shape)
    ones = [1] * len(kernel)
    return (right.T.reshape(inner, inputs, *ones).to(weight.dtype), core.to(weight.dtype),
            left.reshape(outputs, outer, *ones).to(weight.dtype))


def scaled(kernels: Tensor, others: Tensor) -> Tensor:
    """Depthwise filters (half, 1, 3, ...) that make each of `others` a multiple of the kernel of the same place."""
    a, b = kernels.double().flatten(1), others.double().flatten(1)
    factors = (a * b).sum(1) / (a * a).sum(1).clamp_min(_TINY)
    dims = kernels.dim() - 2
    cheap = kernels.new_zeros(len(kernels), 3**dims)
    cheap[:, 3**dims // 2] = factors.to(kernels.dtype)
    return cheap.reshape(len(kernels), 1, *[3] * dims)


def squeezed(weight: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """A pointwise kernel to `width` channels, (width, M, 1, ...), and one that reads these, (N, width, k, ...)."""
    outputs, inputs, *kernel = weight.shape
    full = weight.double().reshape(outputs, inputs, -1)
    basis = leading(full.transpose(0, 1).reshape(inputs, -1), width)
    have = basis.shape[1]
    squeeze, wide = full.new_zeros(width, inputs), full.new_zeros(outputs, width, full.shape[2])
    squeeze[:have], wide[:, :have] = basis.T, torch.einsum("nmk,mr->nrk", full, basis)
    return (squeeze.reshape(width, inputs, *[1] * len(kernel)).to(weight.dtype),
            wide.reshape(outputs, width, *kernel).to(weight.dtype))


def expanded(weight: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fire's three kernels: squeezed to `width`, half of the filters with the middle tap alone, half whole.

    The squeeze sees of the first half only that tap, and the rest of it is lost in any case.

    Returns:
        (width, M, 1, ...), (N / 2, width, 1, ...) and (N / 2, width, k, ...); kernels have odd sizes.
    """
    outputs, inputs, *kernel = weight.shape
    half, taps = outputs // 2, prod(kernel)
    kept = weight.double().reshape(outputs, inputs, taps).clone()
    kept[:half, :, :taps // 2] = 0
    kept[:half, :, taps // 2 + 1:] = 0
    squeeze, core = squeezed(kept.reshape(weight.shape), width)
    middle = core[:half].reshape(half, width, taps)[:, :, taps // 2].reshape(half, width, *[1] * len(kernel))
    return squeeze.to(weight.dtype), middle.to(weight.dtype), core[half:].to(weight.dtype)


def leading(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal columns that hold most of a matrix, shape (rows, min(rank, rows)); float64."""
    gram = _gram(matrix)
    found = _quickly(gram, rank) if len(gram) >= LARGE and rank < len(gram) else None
    if found is None:
        vectors: Tensor = torch.linalg.eigh(gram)[1]
        found = vectors.flip(1)[:, :rank]
    return found


def _gram(matrix: Tensor) -> Tensor:
    """The matrix times its own transpose, of which large ones are made by halves, as it is symmetric."""
    rows = len(matrix)
    if rows < LARGE:
        return matrix @ matrix.T
    gram = matrix.new_empty(rows, rows)
    step = max(1, rows // 8)
    for start in range(0, rows, step):
        part = matrix[start:] @ matrix[start:start + step].T
        gram[start:, start:start + step], gram[start:start + step, start:] = part, part.T
    return gram


def _quickly(gram: Tensor, rank: int) -> Tensor | None:
    """Leading eigenvectors in half of the time: in float32, then once through the matrix itself, in float64.

    What float32 mixes up are directions of nearly the same weight, which may be exchanged, as long as none of them is
    as light as its rounding errors: where the last one wanted has less than a thousandth of the first one's weight the
    answer is None.
    """
    bound = gram.diagonal().sum() / rank / RESOLVED  # the lightest of the wanted has no more than a share of all
    heavy = torch.randn(len(gram), 1, generator=torch.Generator().manual_seed(0), dtype=gram.dtype).to(gram.device)
    for _ in range(8):
        heavy = gram @ (heavy / heavy.norm())
    if heavy.norm() > bound:
        return None
    weights, vectors = torch.linalg.eigh((gram / heavy.norm().clamp_min(_TINY)).float())
    if not weights[-rank] > RESOLVED * weights[-1]:
        return None
    basis: Tensor = torch.linalg.qr(gram @ vectors.flip(1)[:, :rank].double())[0]
    return basis


LARGE = 1024
"""Of so many rows a matrix is large: shortcuts pay."""
RESOLVED = 1e-3
"""The share of the heaviest direction's weight that float32 tells well enough from nothing."""
_TINY = torch.finfo(torch.float64).tiny
