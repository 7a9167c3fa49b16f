"""Which input row meets which output row: the index lists that turn a convolution into matrix products.

Legend: I input rows, O output rows, P pairs of all offsets together, K kernel size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hilda_train.students.sparse.coordinates import kernel_offsets, key_offsets


@dataclass(frozen=True, slots=True, eq=False)
class KernelMap:
    """For every kernel offset k, the pairs of rows with place_input = place_output + offset_k.

    Pairs are grouped by offset, in the order of `kernel_offsets`. Within one offset no input row and no output row
    appears twice, so a scatter of one offset never adds to the same row twice: it is deterministic on every device.
    """

    input_rows: Tensor  # (P,) int64
    output_rows: Tensor  # (P,) int64
    pairs_per_offset: tuple[int, ...]  # K^3 counts, summing to P
    n_inputs: int
    n_outputs: int
    identity: int | None = None
    """The offset (0, 0, 0) of a map from a set of voxels to itself: it pairs every row with itself, takes no search
    and no gather, and is left out of the lists."""

    def transposed(self) -> KernelMap:
        """The same pairs with inputs and outputs exchanged: the map of the transposed convolution and of gradients."""
        return KernelMap(
            self.output_rows,
            self.input_rows,
            self.pairs_per_offset,
            n_inputs=self.n_outputs,
            n_outputs=self.n_inputs,
            identity=self.identity,
        )

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (k, input rows, output rows) of every offset that has pairs, without the identity."""
        inputs = torch.split(self.input_rows, list(self.pairs_per_offset))
        outputs = torch.split(self.output_rows, list(self.pairs_per_offset))
        for k, count in enumerate(self.pairs_per_offset):
            if count:
                yield k, inputs[k], outputs[k]


def submanifold_map(keys: Tensor, stride: int, kernel_size: int) -> KernelMap:
    """Pairs of a convolution whose outputs are the voxels of its input.

    An odd kernel is its own mirror image: if offset k pairs (i, o), offset K^3 - 1 - k pairs (o, i). Half of the
    offsets are searched, the other half is the same lists exchanged.

    Args:
        keys: (N,) int64 sorted keys of the voxels.
        stride: distance of neighbouring voxels in these keys.
        kernel_size: K.
    """
    steps = key_offsets(kernel_offsets(kernel_size) * stride).to(keys.device)
    if kernel_size % 2 == 0:
        return _pack_pairs(*_search(keys, keys, steps), n_steps=len(steps), n_inputs=len(keys), n_outputs=len(keys))
    centre = len(steps) // 2
    k, inputs, outputs = _search(keys, keys, steps[:centre])
    counts = torch.bincount(k, minlength=centre).tolist()
    mirrored_inputs = torch.cat(torch.split(outputs, counts)[::-1])
    mirrored_outputs = torch.cat(torch.split(inputs, counts)[::-1])
    return KernelMap(
        torch.cat([inputs, mirrored_inputs]),
        torch.cat([outputs, mirrored_outputs]),
        (*counts, 0, *reversed(counts)),
        n_inputs=len(keys),
        n_outputs=len(keys),
        identity=centre,
    )


def strided_map(fine_keys: Tensor, coarse_keys: Tensor, stride: int, kernel_size: int) -> KernelMap:
    """Pairs of a convolution from a grid to the next coarser one.

    Args:
        fine_keys: (I,) int64 sorted keys of the inputs.
        coarse_keys: (O,) int64 sorted keys of the outputs.
        stride: distance of neighbouring voxels in `fine_keys`.
        kernel_size: K.
    """
    steps = key_offsets(kernel_offsets(kernel_size) * stride).to(fine_keys.device)
    pairs = _search(fine_keys, coarse_keys, steps)
    return _pack_pairs(*pairs, n_steps=len(steps), n_inputs=len(fine_keys), n_outputs=len(coarse_keys))


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


def _search(input_keys: Tensor, output_keys: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs with key_input = key_output + step: (offset, input row, output row), sorted by offset and output."""
    rows, found = find_rows(input_keys, output_keys + steps[:, None])
    k, outputs = found.nonzero(as_tuple=True)
    return k, rows[found], outputs


def _pack_pairs(
    k: Tensor, inputs: Tensor, outputs: Tensor, *, n_steps: int, n_inputs: int, n_outputs: int
) -> KernelMap:
    counts = torch.bincount(k, minlength=n_steps).tolist()
    return KernelMap(inputs, outputs, tuple(counts), n_inputs=n_inputs, n_outputs=n_outputs)
