"""Factors of a heavy layer's weight: the weights of light layers that come closest to it.

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
    # Both parts get the same norm, so that one learning rate suits both.
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
    first, second = low_rank_factors(flat, middle)
    return (second.reshape(-1, inputs, 1, width).to(weight.dtype),
            first.reshape(outputs, height, -1).transpose(1, 2).unsqueeze(-1).contiguous().to(weight.dtype))


def low_rank_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (rows, rank) and (rank, columns) whose product is nearest; zeros beyond the matrix's own rank."""
    rows, columns = matrix.shape
    if columns > rows:
        second, first = low_rank_factors(matrix.T, rank)
        return first.T, second.T
    full = matrix.double()
    basis = leading_directions(full.T, rank)
    a, b = full.new_zeros(rows, rank), full.new_zeros(rank, columns)
    kept = basis.shape[1]
    factors = full @ basis
    root = factors.norm(dim=0).sqrt()
    a[:, :kept], b[:kept] = factors / root.clamp_min(_TINY), (basis * root).T
    return a.to(matrix.dtype), b.to(matrix.dtype)


def tucker2(weight: Tensor, outer: int, inner: int, rounds: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Pointwise, core and pointwise kernels: Tucker-2 by orthogonal iteration (Kim et al. 2016, section 3.1).

    Args:
        weight: (N, M, k, ...).
        outer: channels of the core's result, at most N.
        inner: channels that the core reads, at most M.
        rounds: alternations; the error falls with each.

    Returns:
        (inner, M, 1, ...), (outer, inner, k, ...) and (N, outer, 1, ...).
    """
    outputs, inputs, *kernel = weight.shape
    full = weight.double().reshape(outputs, inputs, -1)
    right = leading_directions(full.transpose(0, 1).reshape(inputs, -1), inner)
    for _ in range(rounds):
        left = leading_directions(torch.einsum("nmk,mr->nrk", full, right).reshape(outputs, -1), outer)
        right = leading_directions(torch.einsum("nmk,nr->mrk", full, left).reshape(inputs, -1), inner)
    core = torch.zeros(outer, inner, *kernel, dtype=full.dtype, device=full.device)
    core += torch.einsum("nmk,na,mb->abk", full, left, right).reshape(core.shape)
    ones = [1] * len(kernel)
    return (right.T.reshape(inner, inputs, *ones).to(weight.dtype), core.to(weight.dtype),
            left.reshape(outputs, outer, *ones).to(weight.dtype))


def ghost_filters(kernels: Tensor, others: Tensor) -> Tensor:
    """Depthwise filters (half, 1, 3, ...) that make each of `others` a multiple of the kernel at the same index."""
    a, b = kernels.double().flatten(1), others.double().flatten(1)
    factors = (a * b).sum(1) / (a * a).sum(1).clamp_min(_TINY)
    dims = kernels.dim() - 2
    cheap = kernels.new_zeros(len(kernels), 3**dims)
    cheap[:, 3**dims // 2] = factors.to(kernels.dtype)
    return cheap.reshape(len(kernels), 1, *[3] * dims)


def squeeze_factors(weight: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """A pointwise kernel to `width` channels, (width, M, 1, ...), and one that reads these, (N, width, k, ...)."""
    outputs, inputs, *kernel = weight.shape
    full = weight.double().reshape(outputs, inputs, -1)
    basis = leading_directions(full.transpose(0, 1).reshape(inputs, -1), width)
    kept = basis.shape[1]
    squeeze, wide = full.new_zeros(width, inputs), full.new_zeros(outputs, width, full.shape[2])
    squeeze[:kept], wide[:, :kept] = basis.T, torch.einsum("nmk,mr->nrk", full, basis)
    return (squeeze.reshape(width, inputs, *[1] * len(kernel)).to(weight.dtype),
            wide.reshape(outputs, width, *kernel).to(weight.dtype))


def fire_factors(weight: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fire's three kernels: squeezed to `width`, half of the filters with the middle tap alone, half whole.

    The squeeze is computed from the taps that remain: the others of the first half are lost in any case.

    Returns:
        (width, M, 1, ...), (N / 2, width, 1, ...) and (N / 2, width, k, ...); kernels have odd sizes.
    """
    outputs, inputs, *kernel = weight.shape
    half, taps = outputs // 2, prod(kernel)
    kept = weight.double().reshape(outputs, inputs, taps).clone()
    kept[:half, :, :taps // 2] = 0
    kept[:half, :, taps // 2 + 1:] = 0
    squeeze, core = squeeze_factors(kept.reshape(weight.shape), width)
    middle = core[:half].reshape(half, width, taps)[:, :, taps // 2].reshape(half, width, *[1] * len(kernel))
    return squeeze.to(weight.dtype), middle.to(weight.dtype), core[half:].to(weight.dtype)


def leading_directions(matrix: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors of a matrix as columns, (rows, min(rank, rows)); float64."""
    gram = _gram(matrix)
    vectors = _fast_eigenvectors(gram, rank) if len(gram) >= LARGE_ROWS and rank < len(gram) else None
    if vectors is None:
        vectors = torch.linalg.eigh(gram)[1].flip(1)[:, :rank]
    return vectors


def _gram(matrix: Tensor) -> Tensor:
    """The matrix times its transpose; of a large one only the lower half is computed, as it is symmetric."""
    rows = len(matrix)
    if rows < LARGE_ROWS:
        return matrix @ matrix.T
    gram = matrix.new_empty(rows, rows)
    step = max(1, rows // 8)
    for start in range(0, rows, step):
        block = matrix[start:] @ matrix[start:start + step].T
        gram[start:, start:start + step], gram[start:start + step, start:] = block, block.T
    return gram


def _fast_eigenvectors(gram: Tensor, rank: int) -> Tensor | None:
    """Leading eigenvectors in half of the time: in float32, then one power iteration in float64.

    Float32 mixes directions of nearly equal eigenvalues, which are interchangeable, and those whose eigenvalues are as
    small as its rounding errors, which are not: None where the last wanted eigenvalue is below a thousandth of the
    first.
    """
    # the last wanted eigenvalue is at most the trace divided by the rank
    largest_allowed = gram.diagonal().sum() / rank / FLOAT32_RESOLUTION
    vector = torch.randn(len(gram), 1, generator=torch.Generator().manual_seed(0), dtype=gram.dtype).to(gram.device)
    for _ in range(8):  # a lower bound of the largest eigenvalue, by power iteration
        vector = gram @ (vector / vector.norm())
    if vector.norm() > largest_allowed:
        return None
    eigenvalues, vectors = torch.linalg.eigh((gram / vector.norm().clamp_min(_TINY)).float())
    if not eigenvalues[-rank] > FLOAT32_RESOLUTION * eigenvalues[-1]:
        return None
    basis: Tensor = torch.linalg.qr(gram @ vectors.flip(1)[:, :rank].double())[0]
    return basis


LARGE_ROWS = 1024
"""From so many rows on the shortcuts pay."""
FLOAT32_RESOLUTION = 1e-3
"""Least ratio to the largest eigenvalue at which float32 is accurate enough."""
_TINY = torch.finfo(torch.float64).tiny
