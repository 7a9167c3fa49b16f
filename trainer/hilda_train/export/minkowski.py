"""For MinkowskiEngine: names and layout are the same. SLidR's code, and its descendants', loads the file as it is.

Checked against MinkowskiEngine 0.5.4 and SLidR 14729d0 (2025-03).
"""

from __future__ import annotations

from typing import Any

from hilda_train.export.backbone import Backbone, State


def convert(backbone: Backbone) -> State:
    """The state as it is: shapes as `hilda_train.export.kernels` lists them."""
    backbone.minkunet("minkowski")
    return dict(backbone.state)


def slidr_config(backbone: Backbone) -> dict[str, Any]:
    """The voxels, as the config that SLidR's `make_model` compares with its own, where it has words for them."""
    voxels = backbone.minkunet("minkowski").voxels
    radial, azimuth, height = voxels.size
    cylindrical = voxels.shape == "cylindrical"
    if radial != height or azimuth != (1.0 if cylindrical else radial):
        return {}
    return {"config": {"voxel_size": radial, "cylindrical_coordinates": cylindrical}}
