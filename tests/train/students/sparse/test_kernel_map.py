"""Kernel maps against a dictionary and two loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_train.students.sparse import Geometry, kernel_offsets

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
    pairs = [(k, i, o) for k, ins, outs in kernel_map for i, o in zip(ins.tolist(), outs.tolist(), strict=True)]
    if kernel_map.identity is not None:
        pairs += [(kernel_map.identity, row, row) for row in range(kernel_map.n_inputs)]
    return pairs


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


@settings(max_examples=30, deadline=None)
@given(CLOUD, st.sampled_from([2, 3]))
def test_no_row_appears_twice_in_one_offset(cloud, kernel_size):
    """What makes the scatter deterministic on a device that adds in any order."""
    geometry = Geometry(torch.tensor(sorted(cloud), dtype=torch.int32).view(-1, 4), batch_size=2)
    for kind in ("submanifold", "strided"):
        for _, inputs, outputs in geometry.kernel_map(kind, 1, kernel_size):
            assert len(inputs.unique()) == len(inputs)
            assert len(outputs.unique()) == len(outputs)


@given(CLOUD)
def test_a_kernel_of_two_gives_every_voxel_to_its_parent_once(cloud):
    geometry = Geometry(torch.tensor(sorted(cloud), dtype=torch.int32).view(-1, 4), batch_size=2)
    kernel_map = geometry.kernel_map("strided", 1, 2)
    order = kernel_map.input_rows.argsort()
    assert kernel_map.input_rows[order].tolist() == list(range(len(cloud)))
    assert kernel_map.output_rows[order].tolist() == geometry.parents(1).tolist()


def test_transposed_exchanges_the_sides():
    geometry = Geometry(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 2, 0, 0]]), batch_size=1)
    kernel_map = geometry.kernel_map("strided", 1, 3)
    exchanged = {(k, o, i) for k, i, o in listed(kernel_map)}
    assert set(listed(kernel_map.transposed())) == exchanged
    assert kernel_map.transposed().n_outputs == 3
