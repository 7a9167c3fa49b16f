"""Which input row meets which output row: the index lists that turn a convolution into matrix products.

Legend: I input rows, O output rows, P pairs of one block, K kernel size, n output rows of one block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from hilda_train.students.sparse.coordinates import kernel_offsets, key_offsets

BLOCK_ROWS = 1 << 14
"""Output rows worked on at a time: it bounds the memory of the gathered rows, whatever the size of the batch."""
NO_KEY = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The pairs of a run of output rows, in two orders.

    The products of one kernel offset must lie together, to be one matrix product. The products of one output row
    must be found together, to be one sum. So pairs are listed by offset, and `by_output` lists their positions in
    that list by output row.
    """

    input_rows: Tensor  # (P,) int32, grouped by offset, ascending within an offset
    output_rows: Tensor  # (P,) int32, of the whole output
    offsets: tuple[tuple[int, int], ...]  # (k, number of pairs) of every offset k that has pairs, in the lists' order
    by_output: Tensor  # (P,) int32 positions in the two lists, in the order of output rows
    starts: Tensor  # (n,) int32: where the positions of each output row begin in `by_output`


@dataclass(frozen=True, slots=True, eq=False)
class KernelMap:
    """For every kernel offset k, the pairs of rows with place_input = place_output + offset_k."""

    blocks: tuple[Block, ...]  # of ascending runs of output rows
    back: tuple[Block, ...]  # the same pairs with inputs and outputs exchanged, for gradients and transposed layers
    n_inputs: int
    n_outputs: int
    identity: int | None = None
    """The offset (0, 0, 0) of a map from a set of voxels to itself: it pairs every row with itself, takes no search
    and no gather, and is left out of the lists."""

    def transposed(self) -> KernelMap:
        """The same pairs with inputs and outputs exchanged: the map of the transposed convolution."""
        return KernelMap(self.back, self.blocks, self.n_outputs, self.n_inputs, self.identity)


def submanifold_map(keys: Tensor, stride: int, kernel_size: int) -> KernelMap:
    """Pairs of a convolution whose outputs are the voxels of its input.

    An odd kernel is its own mirror image: if offset k pairs (i, o), offset K^3 - 1 - k pairs (o, i). Exchanging
    inputs and outputs is therefore renaming the offsets, and both directions share their lists.

    Args:
        keys: (N,) int64 sorted keys of the voxels.
        stride: distance of neighbouring voxels in these keys.
        kernel_size: K.
    """
    steps = _steps(stride, kernel_size, keys.device)
    last = len(steps) - 1
    identity = last // 2 if kernel_size % 2 else 0
    blocks = _blocks(keys, keys, steps, identity)
    if kernel_size % 2 == 0:
        return KernelMap(blocks, _blocks(keys, keys, -steps, identity), len(keys), len(keys), identity)
    mirrored = tuple(replace(block, offsets=tuple((last - k, count) for k, count in block.offsets)) for block in blocks)
    return KernelMap(blocks, mirrored, len(keys), len(keys), identity)


def strided_map(fine_keys: Tensor, coarse_keys: Tensor, stride: int, kernel_size: int) -> KernelMap:
    """Pairs of a convolution from a grid to the next coarser one.

    Args:
        fine_keys: (I,) int64 sorted keys of the inputs.
        coarse_keys: (O,) int64 sorted keys of the outputs.
        stride: distance of neighbouring voxels in `fine_keys`.
        kernel_size: K.
    """
    steps = _steps(stride, kernel_size, fine_keys.device)
    down, up = _blocks(fine_keys, coarse_keys, steps), _blocks(coarse_keys, fine_keys, -steps)
    return KernelMap(down, up, len(fine_keys), len(coarse_keys))


def find_rows(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Look keys up.

    Args:
        keys: (N,) int64 sorted.
        wanted: int64 keys, any shape.

    Returns:
        Rows of `keys` (int64) and whether they hold what was wanted (bool), both in the shape of `wanted`. The row
        of a key that is not there is some legal row, 0 where there is none.
    """
    if not len(keys):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    rows = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return rows, keys[rows] == wanted


@lru_cache(maxsize=64)  # a handful of kernels and strides, asked for with every sweep
def _steps(stride: int, kernel_size: int, device: torch.device) -> Tensor:
    """(K^3,) int64: what each kernel offset adds to a key."""
    return key_offsets(kernel_offsets(kernel_size) * stride).to(device)


def _blocks(input_keys: Tensor, output_keys: Tensor, steps: Tensor, identity: int | None = None) -> tuple[Block, ...]:
    """All pairs with key_input = key_output + step_k."""
    ended = torch.cat([input_keys, input_keys.new_tensor([NO_KEY])])  # so that a search past the end finds no match
    starts = range(0, len(output_keys), BLOCK_ROWS)
    return tuple(_block(ended, output_keys[start : start + BLOCK_ROWS], steps, identity, start) for start in starts)


def _block(ended_keys: Tensor, output_keys: Tensor, steps: Tensor, identity: int | None, first_row: int) -> Block:
    rows, found = _search_columns(ended_keys, output_keys, steps)
    if identity is not None:
        found[identity] = False
    counts = found.sum(1).tolist()
    _, outputs = found.nonzero(as_tuple=True)
    pairs_of_row = found.sum(0)
    return Block(
        input_rows=rows[found].int(),
        output_rows=(outputs + first_row).int(),
        offsets=tuple((k, count) for k, count in enumerate(counts) if count),
        by_output=outputs.argsort(stable=True).int(),
        starts=(pairs_of_row.cumsum(0) - pairs_of_row).int(),
    )


def _search_columns(ended_keys: Tensor, output_keys: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Look up the neighbours of every output voxel, one search for each of the kernel's K^2 columns.

    Keys that differ in z alone are neighbours in the sorted list. So if the lowest voxel of a column would stand at
    row r, the next one up stands at r too, or at r + 1 where the lowest one is occupied.

    Args:
        ended_keys: (I + 1,) int64 sorted, the last one `NO_KEY`.
        output_keys: (n,) int64.
        steps: (K^3,) int64, z slowest.

    Returns:
        (K^3, n) int64 rows, and (K^3, n) bool whether they hold the neighbour.
    """
    size = round(len(steps) ** (1 / 3))
    columns = steps.view(size, -1)
    levels = range(size) if bool(columns[0, 0] <= columns[-1, 0]) else reversed(range(size))
    rows = output_keys.new_empty(size, columns.shape[1], len(output_keys))
    found = torch.empty_like(rows, dtype=torch.bool)
    row = None
    for level in levels:
        wanted = output_keys + columns[level][:, None]
        row = torch.searchsorted(ended_keys, wanted) if row is None else row
        torch.eq(ended_keys[row], wanted, out=found[level])
        rows[level] = row
        row = row + found[level]
    return rows.flatten(0, 1), found.flatten(0, 1)
