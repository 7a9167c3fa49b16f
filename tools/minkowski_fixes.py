"""What MinkowskiEngine 0.5.4, a release of 2021, needs changed before today's Python, torch and CUDA build it.

Each fix replaces texts that must be there exactly once, so none can turn into a silent no-op when the source is another
one. `build_minkowski.py` applies them to the unpacked archive.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class FixError(Exception):
    """The source is not the one that the fixes were written for."""


def replace(file: Path, old: str, new: str) -> None:
    """Replace a text that occurs exactly once.

    Raises:
        FixError: the file is missing, or does not hold the text exactly once.
    """
    text = file.read_text() if file.is_file() else ""
    if (count := text.count(old)) != 1:
        raise FixError(f"{file}: expected {old!r} once, found it {count} times")
    file.write_text(text.replace(old, new))


def abstract_classes(source: Path) -> None:
    """Python 3.10 took the abstract classes out of `collections`."""
    package = source / "MinkowskiEngine"
    old, new = "\nfrom collections import Sequence\n", "\nfrom collections.abc import Sequence\n"
    for name in ("MinkowskiCommon", "MinkowskiCoordinateManager", "MinkowskiTensorField", "utils/quantization"):
        replace(package / f"{name}.py", old, new)
    old, new = "\nfrom collections import Sequence, namedtuple\n", f"\nfrom collections import namedtuple{new}"
    replace(package / "MinkowskiKernelGenerator.py", old, new)


def gradient_check(source: Path) -> None:
    """`utils/gradcheck.py` imports `torch._six` and other internals that are gone; torch's own check does the same."""
    file = source / "MinkowskiEngine" / "utils" / "gradcheck.py"
    replace(file, "\nfrom torch._six import container_abcs, istuple\n", "\n")
    file.write_text(
        '"""Checks the gradients of an autograd function. Written anew: the original copies internals of torch."""\n'
        "import torch\n\n\n"
        "def gradcheck(func, inputs, **options):\n"
        "    return torch.autograd.gradcheck(func.apply, inputs, **options)\n"
    )


def no_uninstall(source: Path) -> None:
    """`setup.py` begins by uninstalling MinkowskiEngine from whichever environment `pip` happens to belong to."""
    replace(source / "setup.py", '\nrun_command("pip", "uninstall", "MinkowskiEngine", "-y")\n', "\n")


def thrust_headers(source: Path) -> None:
    """Since CUDA 12 a Thrust header no longer includes the others; these files use what they do not include."""
    for name, before, after, headers in (
        ("3rdparty/concurrent_unordered_map.cuh", "<thrust/pair.h>", "<thrust/count.h>", ("execution_policy",)),
        ("convolution_kernel.cuh", "<array>", "<vector>", ("execution_policy",)),
        ("coordinate_map_gpu.cu", "<thrust/copy.h>", "<thrust/execution_policy.h>", ("remove", "unique")),
        ("spmm.cu", "<ATen/cuda/CUDAContext.h>", "<ATen/cuda/CUDAUtils.h>", ("execution_policy", "reduce", "sort")),
    ):
        first, last = f"\n#include {before}\n", f"#include {after}\n"
        lines = "".join(f"#include <thrust/{header}.h>\n" for header in headers)
        replace(source / "src" / name, first + last, first + lines + last)


def thrust_functor(source: Path) -> None:
    """CUDA 13 has no `thrust::unary_function`: a functor's base class of two type names, which nothing here reads."""
    replace(
        source / "src" / "coordinate_map_functors.cuh",
        """struct find_coordinate
    : public thrust::unary_function<uint32_t,
                                    thrust::pair<uint32_t, uint32_t>> {
""",
        "struct find_coordinate {\n",
    )


def profiler_marks(source: Path) -> None:
    """The one mark for NVIDIA's profiler needs a copy of NVTX that clashes with the one in newer CUDA toolkits."""
    file = source / "src" / "3rdparty" / "concurrent_unordered_map.cuh"
    replace(file, "\n#include <cudf/detail/nvtx/ranges.hpp>\n", "\n")
    replace(file, "\n    CUDF_FUNC_RANGE();\n", "\n")


def prefetch(source: Path) -> None:
    """CUDA 13's `cudaMemPrefetchAsync` takes a location instead of a device's number: an overload translates."""
    before, after = "\n#include <cudf/utilities/error.hpp>\n", "\n#include <thrust/pair.h>\n"
    overload = """
#if CUDART_VERSION >= 13000
static inline cudaError_t cudaMemPrefetchAsync(void const *data, size_t bytes, int device, cudaStream_t stream) {
  cudaMemLocation location{};
  location.type = cudaMemLocationTypeDevice;
  location.id = device;
  return cudaMemPrefetchAsync(data, bytes, location, 0, stream);
}
#endif
"""
    replace(source / "src" / "3rdparty" / "concurrent_unordered_map.cuh", before + after, before + overload + after)


FIXES = (abstract_classes, gradient_check, no_uninstall)
CUDA_FIXES = (thrust_headers, thrust_functor, profiler_marks, prefetch)


def fixes_for(device: str) -> tuple[Callable[[Path], None], ...]:
    """The fixes that a build for "cpu" or "cuda" takes."""
    return FIXES + CUDA_FIXES if device == "cuda" else FIXES
