"""Sparse convolution in plain PyTorch: convolution that visits occupied voxels only.

A dense 3D convolution, written as a sum over the K^3 offsets of its kernel, is

    out[v] = sum_k  in[v + offset_k] @ W[k]

and makes a LiDAR sweep pay for the empty space around it: one voxel in some ten thousand is occupied. Where nothing
is, `in` is zero and the term vanishes. So keep only the occupied voxels, as rows of a matrix, and for every offset
k list the pairs of rows (i, o) with place_i = place_o + offset_k. Then, for every k,

    gather    in[i]            the rows that meet offset k
    multiply  by W[k]          one dense matrix product
    sum       into out[o]      the products of one output row, over all offsets

is the same convolution, exactly. Read the files in this order:

    coordinates.py   a voxel's place as one sortable integer; the order of kernel offsets
    kernel_map.py    the pairs (i, o) of every offset, found by one search for each column of the kernel
    tensor.py        features with their geometry; every kernel map is built once and shared by all layers
    product.py       gather, multiply, sum, forwards and backwards
    convolution.py   the three layers: submanifold, strided, transposed
    layers.py        normalisation, activation, skip connections, pooling
"""

from hilda_train.students.sparse.convolution import StridedConv, SubmanifoldConv, TransposedConv
from hilda_train.students.sparse.coordinates import COORDINATE_MAX, COORDINATE_MIN, kernel_offsets
from hilda_train.students.sparse.kernel_map import KernelMap
from hilda_train.students.sparse.layers import (
    BatchNorm,
    RowBatchNorm,
    add,
    concatenate,
    global_max,
    global_mean,
    relu,
)
from hilda_train.students.sparse.tensor import Geometry, SparseTensor

__all__ = [
    "COORDINATE_MAX",
    "COORDINATE_MIN",
    "BatchNorm",
    "Geometry",
    "KernelMap",
    "RowBatchNorm",
    "SparseTensor",
    "StridedConv",
    "SubmanifoldConv",
    "TransposedConv",
    "add",
    "concatenate",
    "global_max",
    "global_mean",
    "kernel_offsets",
    "relu",
]
