"""A step of `AirbenchMuon` on a GPU, for all convolutions at once, in Triton. PyTorch's operations need two hundred
kernels for it, and starting most of them takes longer than running them.

Filters go through the Newton–Schulz iteration as one batch of matrices. The smaller ones are padded with zeros: zero
rows and columns stay zero, and do not change the other singular values.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_VALUES = 2048  # values of a filter per program
_TILE = 64  # side of the square of a matrix product that one program computes
_POINTERS = 8  # pointers that one kernel writes


class Plan(NamedTuple):
    """Where filters are in a batch of matrices. It is made once per model, before a step is recorded as a CUDA graph,
    since making it copies from the CPU.

    shape: (K, M, N), the batch's. sizes: int32 (4, K): each filter's number of values, its number of values per output
    channel, and its strides in a matrix of the batch: between output channels, and between the values of one. blocks:
    how many programs the largest filter needs. pointers: int64 (3, K), memory for the addresses of parameters,
    gradients and momenta.
    """

    shape: tuple[int, int, int]
    sizes: Tensor
    blocks: int
    pointers: Tensor


def plan(parameters: Sequence[Tensor]) -> Plan | None:
    """parameters: (out, …) each, on one device. Returns None if `step` cannot update them, or if their sizes differ so
    much that most of the batch would be padding.
    """
    matrices = [(len(parameter), parameter[0].numel()) for parameter in parameters]
    m, n = max(min(sides) for sides in matrices), max(max(sides) for sides in matrices)
    if len(matrices) * m * n > 3 * sum(out * row for out, row in matrices):
        return None
    for parameter in parameters:
        dense = parameter.is_contiguous() or parameter.is_contiguous(memory_format=torch.channels_last)
        if not dense or parameter.dtype != torch.float32:
            return None
    sizes = [(out * row, row, *((n, 1) if out <= row else (1, n))) for out, row in matrices]
    device = parameters[0].device
    table = torch.tensor(sizes, dtype=torch.int32).T.contiguous().to(device)
    blocks = triton.cdiv(max(out * row for out, row in matrices), _VALUES)
    pointers = torch.zeros(3, len(matrices), dtype=torch.int64, device=device)
    return Plan((len(matrices), m, n), table, blocks, pointers)


def step(
    plan: Plan,
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    momentum: float,
    lr: Tensor,
    coefficients: tuple[float, float, float],
    iterations: int,
) -> None:
    """Update filters and their momenta as `AirbenchMuon` does.

    parameters, grads, momenta: float32, dense; those of one filter have the same memory layout. lr: float32 ().
    """
    count, m, n = plan.shape
    a, b, c = coefficients
    tensors = [*parameters, *grads, *momenta]
    for at in range(0, len(tensors), _POINTERS):
        some = (tensors[at : at + _POINTERS] * _POINTERS)[:_POINTERS]
        _write_pointers[(1,)](plan.pointers, at, min(_POINTERS, len(tensors) - at), *some)
    x = torch.zeros(plan.shape, dtype=torch.bfloat16, device=lr.device)
    squares = torch.empty(2, count, plan.blocks, dtype=torch.float32, device=lr.device)
    blocks_tile = triton.next_power_of_2(plan.blocks)
    grid = plan.blocks, count
    sizes = plan.pointers, plan.sizes, count, m * n, plan.blocks
    _nesterov[grid](*sizes, x, squares, momentum, _VALUES)
    _normalize[(triton.cdiv(m * n, _VALUES), count)](x, squares, m * n, plan.blocks, blocks_tile, _VALUES)
    polynomial = torch.empty(count, m, m, dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(m, _TILE), triton.cdiv(m, _TILE), count
    factor = tl.float32 if x.device.type == "cpu" else tl.bfloat16  # Triton's interpreter multiplies bf16 by its bits
    for _ in range(iterations):
        gram = x @ x.mT
        _polynomial[tiles](gram, polynomial, m, a, b, c, factor, _TILE)
        x = polynomial @ x
    _descend[grid](*sizes, x, squares, lr, blocks_tile, _VALUES)
    torch.autograd.graph.increment_version([*parameters, *momenta])


@triton.jit(do_not_specialize=["start", "count"])
def _write_pointers(pointers, start, count, a, b, c, d, e, f, g, h):  # type: ignore[no-untyped-def]
    tl.store(pointers + start, a.to(tl.int64))
    tl.store(pointers + start + 1, b.to(tl.int64), count > 1)
    tl.store(pointers + start + 2, c.to(tl.int64), count > 2)
    tl.store(pointers + start + 3, d.to(tl.int64), count > 3)
    tl.store(pointers + start + 4, e.to(tl.int64), count > 4)
    tl.store(pointers + start + 5, f.to(tl.int64), count > 5)
    tl.store(pointers + start + 6, g.to(tl.int64), count > 6)
    tl.store(pointers + start + 7, h.to(tl.int64), count > 7)


@triton.jit  # type: ignore[untyped-decorator]
def _places(sizes, count, matrix, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    """The indices of this program's values in their filter, whether they exist, and their places in the matrix."""
    at = tl.program_id(0) * tile + tl.arange(0, tile)
    row = tl.load(sizes + count + matrix)
    place = at // row * tl.load(sizes + 2 * count + matrix) + at % row * tl.load(sizes + 3 * count + matrix)
    return at, at < tl.load(sizes + matrix), place


@triton.jit
def _floats(pointers, at):  # type: ignore[no-untyped-def]
    return tl.multiple_of(tl.load(pointers + at).to(tl.pointer_type(tl.float32)), 16)


@triton.jit  # type: ignore[untyped-decorator]
def _nesterov(  # type: ignore[no-untyped-def]
    pointers, sizes, count, area, blocks, x, squares, momentum, tile: tl.constexpr
):
    """Update the momenta; write the updates to `x`, and the sums of squares of updates and filters, by block."""
    matrix = tl.program_id(1)
    at, inside, place = _places(sizes, count, matrix, tile)
    parameter = tl.load(_floats(pointers, matrix) + at, inside, other=0.0)
    grad = tl.load(_floats(pointers, count + matrix) + at, inside, other=0.0)
    buffer = _floats(pointers, 2 * count + matrix) + at
    kept = momentum * tl.load(buffer, inside, other=0.0) + grad
    tl.store(buffer, kept, inside)
    update = grad + momentum * kept
    tl.store(x + matrix.to(tl.int64) * area + place, update.to(tl.bfloat16), inside)
    out = squares + matrix * blocks + tl.program_id(0)
    tl.store(out, tl.sum(update * update, 0))
    tl.store(out + count * blocks, tl.sum(parameter * parameter, 0))


@triton.jit  # type: ignore[untyped-decorator]
def _norm(squares, matrix, blocks, blocks_tile: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.arange(0, blocks_tile)
    return tl.sqrt(tl.sum(tl.load(squares + matrix * blocks + block, block < blocks, other=0.0), 0))


@triton.jit  # type: ignore[untyped-decorator]
def _normalize(  # type: ignore[no-untyped-def]
    x, squares, area, blocks, blocks_tile: tl.constexpr, tile: tl.constexpr
):
    """Divide each matrix of `x` by its norm, so that no singular value is above 1."""
    matrix = tl.program_id(1)
    at = tl.program_id(0) * tile + tl.arange(0, tile)
    values = x + matrix.to(tl.int64) * area + at
    norm = _norm(squares, matrix, blocks, blocks_tile) + 1e-7
    tl.store(values, (tl.load(values, at < area, other=0.0).to(tl.float32) / norm).to(tl.bfloat16), at < area)


@triton.jit  # type: ignore[untyped-decorator]
def _polynomial(  # type: ignore[no-untyped-def]
    gram, polynomial, side, a, b, c, factor: tl.constexpr, tile: tl.constexpr
):
    """a + b · gram + c · gram², of symmetric bf16 (K, side, side)."""
    start = tl.program_id(2).to(tl.int64) * side * side
    row = tl.program_id(0) * tile + tl.arange(0, tile)[:, None]
    column = tl.program_id(1) * tile + tl.arange(0, tile)[None, :]
    total = tl.zeros([tile, tile], tl.float32)
    for k in range(0, side, tile):
        across, down = k + tl.arange(0, tile)[None, :], k + tl.arange(0, tile)[:, None]
        left = tl.load(gram + start + row * side + across, (row < side) & (across < side), other=0.0)
        right = tl.load(gram + start + down * side + column, (down < side) & (column < side), other=0.0)
        total = tl.dot(left.to(factor), right.to(factor), total)
    inside = (row < side) & (column < side)
    at = start + row * side + column
    total = c * total + b * tl.load(gram + at, inside, other=0.0).to(tl.float32) + tl.where(row == column, a, 0.0)
    tl.store(polynomial + at, total.to(tl.bfloat16), inside)


@triton.jit  # type: ignore[untyped-decorator]
def _descend(  # type: ignore[no-untyped-def]
    pointers, sizes, count, area, blocks, x, squares, lr, blocks_tile: tl.constexpr, tile: tl.constexpr
):
    """Scale filters to norm √out, and subtract `lr` times their matrix of `x`."""
    matrix = tl.program_id(1)
    at, inside, place = _places(sizes, count, matrix, tile)
    parameter = _floats(pointers, matrix) + at
    outputs = (tl.load(sizes + matrix) // tl.load(sizes + count + matrix)).to(tl.float32)
    scale = tl.sqrt(outputs) / _norm(squares + count * blocks, matrix, blocks, blocks_tile)
    update = tl.load(x + matrix.to(tl.int64) * area + place, inside, other=0.0).to(tl.float32)
    tl.store(parameter, tl.load(parameter, inside, other=0.0) * scale - tl.load(lr) * update, inside)
