"""Kernel maps against a dictionary and two loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_train.students.sparse import Geometry, kernel_offsets
from hilda_train.students.sparse import kernel_map as module

SMALL = st.integers(-5, 4)
CLOUD = st.sets(st.tuples(st.integers(0, 1), SMALL, SMALL, SMALL), max_size=60)


def brute_force(inputs, outputs, stride, kernel_size):
    """{(k, input row, output row)} with input = output + offset_k * stride, by comparing every pair."""
    offsets = {tuple(offset): k for k, offset in enumerate((kernel_offsets(kernel_size) * stride).tolist())}
    pairs = set()
    for i, (item, *place) in enumerate(inputs):
        for o, (other_item, *other) in enumerate(outputs):
            difference = tuple(a - b for a, b in zip(place, other, strict=True))
            if item == other_item and difference in offsets:
                pairs.add((offsets[difference], i, o))
    return pairs


def listed(kernel_map):
    """The map as a list of (k, input row, output row), the identity written out."""
    pairs = [pair for block in kernel_map.blocks for pair in listed_block(block)]
    if kernel_map.identity is not None:
        pairs += [(kernel_map.identity, row, row) for row in range(kernel_map.n_inputs)]
    return pairs


def listed_block(block):
    of_pairs = [k for k, count in block.offsets for _ in range(count)]
    return list(zip(of_pairs, block.input_rows.tolist(), block.output_rows.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(CLOUD, st.sampled_from([1, 2, 4]), st.sampled_from([2, 3, 5]), st.sampled_from(["submanifold", "strided"]))
def test_equals_brute_force(cloud, stride, kernel_size, kind):
    geometry = Geometry(torch.tensor(sorted(cloud), dtype=torch.int32).view(-1, 4), batch_size=2)
    fine = geometry.coords(stride).tolist()
    outputs = fine if kind == "submanifold" else geometry.coords(2 * stride).tolist()
    kernel_map = geometry.kernel_map(kind, stride, kernel_size)
    pairs = listed(kernel_map)
    assert len(pairs) == len(set(pairs)), "a pair is listed twice"
    assert set(pairs) == brute_force(fine, outputs, stride, kernel_size)
    assert (kernel_map.n_inputs, kernel_map.n_outputs) == (len(fine), len(outputs))


@settings(max_examples=60, deadline=None)
@given(CLOUD, st.sampled_from([2, 3]), st.sampled_from([1, 3, 16]), st.booleans(), st.booleans())
def test_blocks_split_the_outputs_and_know_the_pairs_of_each(cloud, kernel_size, rows, strided, exchanged):
    """Blocks of any size, in both directions: the same pairs, each found once under its output row."""
    coords = torch.tensor(sorted(cloud), dtype=torch.int32).view(-1, 4)
    wanted = ("strided" if strided else "submanifold", 1, kernel_size)
    whole = Geometry(coords, batch_size=2).kernel_map(*wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_ROWS", rows)
        split = Geometry(coords, batch_size=2).kernel_map(*wanted)
    if exchanged:
        whole, split = whole.transposed(), split.transposed()
    assert sorted(listed(split)) == sorted(listed(whole))
    assert sum(len(block.starts) for block in split.blocks) == split.n_outputs
    first = 0
    for block in split.blocks:
        assert len(block.starts) <= rows
        ends = [*block.starts.tolist()[1:], len(block.by_output)]
        assert sorted(block.by_output.tolist()) == list(range(len(block.input_rows)))
        for row, (start, end) in enumerate(zip(block.starts.tolist(), ends, strict=True)):
            assert set(block.output_rows[block.by_output[start:end]].tolist()) <= {first + row}
        first += len(block.starts)


@given(CLOUD)
def test_a_kernel_of_two_gives_every_voxel_to_its_parent_once(cloud):
    geometry = Geometry(torch.tensor(sorted(cloud), dtype=torch.int32).view(-1, 4), batch_size=2)
    parents = {i: o for _, i, o in listed(geometry.kernel_map("strided", 1, 2))}
    assert len(listed(geometry.kernel_map("strided", 1, 2))) == len(cloud)
    assert [parents[row] for row in range(len(cloud))] == geometry.parents(1).tolist()


def test_transposed_exchanges_the_sides():
    geometry = Geometry(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 2, 0, 0]]), batch_size=1)
    kernel_map = geometry.kernel_map("strided", 1, 3)
    exchanged = {(k, o, i) for k, i, o in listed(kernel_map)}
    assert set(listed(kernel_map.transposed())) == exchanged
    assert kernel_map.transposed().n_outputs == 3
