"""A trained backbone in the files, names and kernel layouts of the code that will use it.

    export_backbone(load_backbone(run), "mmdet3d-spconv", out)

One small file for each target holds its `convert`, a pure function from our state to theirs; `kernels.py` explains the
layouts, `write.py` writes. What a target cannot express is refused, never approximated in silence.
"""

from hilda_train.export.backbone import Backbone
from hilda_train.export.load import load_backbone
from hilda_train.export.write import TARGETS, export_backbone

__all__ = ["TARGETS", "Backbone", "export_backbone", "load_backbone"]
