"""What MinkowskiEngine's source needs changed: each fix on the text that it is for, and on others."""

from __future__ import annotations

import collections.abc
import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))  # where Python looks when it runs a script there

from minkowski_fixes import FixError, fixes_for

FIXES = fixes_for("cuda")

# The lines that the fixes are about, and their neighbours, as in the release's source archive.
EXCERPTS = {
    "MinkowskiEngine/MinkowskiCommon.py": "# of the code.\nfrom collections import Sequence\nimport math\n",
    "MinkowskiEngine/MinkowskiCoordinateManager.py": "import os\nfrom collections import Sequence\nimport math\n",
    "MinkowskiEngine/MinkowskiTensorField.py": "import os\nfrom collections import Sequence\nimport math\n",
    "MinkowskiEngine/MinkowskiKernelGenerator.py": (
        "import math\nfrom collections import Sequence, namedtuple\nfrom functools import reduce\n"
    ),
    "MinkowskiEngine/utils/quantization.py": "import math\nfrom collections import Sequence\nimport os\n",
    "MinkowskiEngine/utils/gradcheck.py": (
        "import torch\nfrom torch._six import container_abcs, istuple\nimport torch.testing\n"
    ),
    "setup.py": (
        'import sys\n\nrun_command("rm", "-rf", "build")\n'
        'run_command("pip", "uninstall", "MinkowskiEngine", "-y")\n\n# For cpu only build\n'
    ),
    "src/3rdparty/concurrent_unordered_map.cuh": (
        "\n#include <cudf/detail/nvtx/ranges.hpp>\n#include <hash/managed.cuh>\n"
        "#include <cudf/utilities/error.hpp>\n\n#include <thrust/pair.h>\n#include <thrust/count.h>\n"
        "  {\n    CUDF_FUNC_RANGE();\n    using Self\n"
    ),
    "src/convolution_kernel.cuh": "#define CONVOLUTION_CUH\n\n#include <array>\n#include <vector>\n\n",
    "src/coordinate_map_gpu.cu": "\n#include <thrust/copy.h>\n#include <thrust/execution_policy.h>\n\n",
    "src/spmm.cu": (
        "#include <cusparse.h>\n\n#include <ATen/cuda/CUDAContext.h>\n#include <ATen/cuda/CUDAUtils.h>\n\nnamespace\n"
    ),
    "src/coordinate_map_functors.cuh": (
        "template <typename coordinate_type, typename map_type>\nstruct find_coordinate\n"
        "    : public thrust::unary_function<uint32_t,\n"
        "                                    thrust::pair<uint32_t, uint32_t>> {\n"
        "  using mapped_type = typename map_type::mapped_type;\n"
    ),
}

OVERLOAD = """\
#if CUDART_VERSION >= 13000
static inline cudaError_t cudaMemPrefetchAsync(void const *data, size_t bytes, int device, cudaStream_t stream) {
  cudaMemLocation location{};
  location.type = cudaMemLocationTypeDevice;
  location.id = device;
  return cudaMemPrefetchAsync(data, bytes, location, 0, stream);
}
#endif

"""

Fix = Callable[[Path], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the excerpts at their places."""
    root = tmp_path / "source"
    for name, text in EXCERPTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def fixed(source: Path) -> Path:
    """The excerpts with every fix applied."""
    for fix in FIXES:
        fix(source)
    return source


def touched_by(fix: Fix, root: Path) -> list[str]:
    """The files that a fix changes."""
    fix(root)
    changed = [name for name, text in EXCERPTS.items() if (root / name).read_text() != text]
    for name in changed:
        (root / name).write_text(EXCERPTS[name])
    return changed


def test_every_excerpt_is_somebodys(source: Path) -> None:
    assert {name for fix in FIXES for name in touched_by(fix, source)} == EXCERPTS.keys()


@pytest.mark.parametrize("name", [name for name, text in EXCERPTS.items() if "import Sequence" in text])
def test_modules_that_this_python_refuses_are_mended(name: str, source: Path, fixed: Path) -> None:
    with pytest.raises(ImportError):
        exec(EXCERPTS[name], {})
    names: dict[str, object] = {}
    exec((fixed / name).read_text(), names)
    assert names["Sequence"] is collections.abc.Sequence
    assert ("namedtuple" in names) == ("namedtuple" in EXCERPTS[name])


def test_setup_no_longer_uninstalls(fixed: Path) -> None:
    commands: list[tuple[str, ...]] = []
    exec((fixed / "setup.py").read_text(), {"run_command": lambda *words: commands.append(words)})
    assert commands == [("rm", "-rf", "build")]


class Square(torch.autograd.Function):
    """x -> x^2, with a derivative that a test may get wrong."""

    factor = 2.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @classmethod
    def backward(cls, ctx, upstream):
        (x,) = ctx.saved_tensors
        return Square.factor * x * upstream


def test_the_new_gradient_check_tells_right_from_wrong(fixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {}
    exec((fixed / "MinkowskiEngine/utils/gradcheck.py").read_text(), names)
    x = torch.tensor([0.5, -1.5], dtype=torch.float64, requires_grad=True)
    assert names["gradcheck"](Square, (x,))
    monkeypatch.setattr(Square, "factor", 3.0)
    assert not names["gradcheck"](Square, (x,), raise_exception=False)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        names["gradcheck"](Square, (x,))


def test_cuda_sources_change_by_these_lines_alone(fixed: Path) -> None:
    changed = {}
    for name, text in EXCERPTS.items():
        if name.endswith((".cu", ".cuh")):
            lines = difflib.ndiff(text.splitlines(), (fixed / name).read_text().splitlines())
            changed[name] = [line for line in lines if line[0] in "+-"]
    assert changed == {
        "src/3rdparty/concurrent_unordered_map.cuh": [
            "- #include <cudf/detail/nvtx/ranges.hpp>",
            *(f"+ {line}" for line in OVERLOAD.splitlines()),
            "+ #include <thrust/execution_policy.h>",
            "-     CUDF_FUNC_RANGE();",
        ],
        "src/convolution_kernel.cuh": ["+ #include <thrust/execution_policy.h>"],
        "src/coordinate_map_gpu.cu": ["+ #include <thrust/remove.h>", "+ #include <thrust/unique.h>"],
        "src/spmm.cu": [f"+ #include <thrust/{name}.h>" for name in ("execution_policy", "reduce", "sort")],
        "src/coordinate_map_functors.cuh": [
            "- struct find_coordinate",
            "+ struct find_coordinate {",
            "-     : public thrust::unary_function<uint32_t,",
            "-                                     thrust::pair<uint32_t, uint32_t>> {",
        ],
    }


@pytest.mark.parametrize("fix", FIXES, ids=lambda fix: fix.__name__)
def test_a_fix_refuses_a_source_that_is_not_the_expected_one(fix: Fix, source: Path) -> None:
    names = touched_by(fix, source)
    for name in names:
        for text in ("", EXCERPTS[name].replace("i", "1"), EXCERPTS[name] * 2):
            (source / name).write_text(text)
            with pytest.raises(FixError, match=f"{re.escape(name)}: expected .* once, found it [02] times"):
                fix(source)
            for each in names:
                (source / each).write_text(EXCERPTS[each])
        (source / name).unlink()
        with pytest.raises(FixError, match=re.escape(name)):
            fix(source)
        for each in names:
            (source / each).write_text(EXCERPTS[each])


@pytest.mark.parametrize("fix", FIXES, ids=lambda fix: fix.__name__)
def test_a_fix_refuses_to_be_applied_twice(fix: Fix, source: Path) -> None:
    fix(source)
    with pytest.raises(FixError):
        fix(source)


def test_a_cpu_build_leaves_the_cuda_sources_alone(source: Path) -> None:
    for fix in fixes_for("cpu"):
        fix(source)
    same = {name for name, text in EXCERPTS.items() if (source / name).read_text() == text}
    assert same == {name for name in EXCERPTS if name.startswith("src/")}
