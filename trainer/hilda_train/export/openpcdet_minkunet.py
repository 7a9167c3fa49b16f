"""A MinkUNet for OpenPCDet, to drop into pcdet/models/backbones_3d/ together with weights exported by hilda-train.

1. Copy this file there, and add to its `__init__.py`:

       from .openpcdet_minkunet import MinkUNet
       __all__["MinkUNet"] = MinkUNet

2. In the model's config (VFE: MeanVFE; points with the features x, y, z, intensity, ...):

       BACKBONE_3D:
           NAME: MinkUNet
           DEPTH: 34
           WIDTH: 1.0
           STEM_KERNEL_SIZE: 3
           CHANNELS: [intensity, xyz, range]
           INTENSITY_MEAN: 18.742355
           INTENSITY_STD: 22.04632

3. Start from the weights with `--pretrained_model backbone.pth`.

It gives what UNetV2 gives: `point_features` and `point_coords`, one for each voxel, and `encoded_spconv_tensor` of
stride 8. Choose VOXEL_SIZE as in pre-training, and POINT_CLOUD_RANGE so that its lower corner is a multiple of 16
voxels on every axis: then coarse voxels are the ones that were pre-trained on.

This file stands alone: it needs torch and spconv 2 and nothing of hilda-train.
"""

# mypy: ignore-errors
# (spconv ships no types and is not installed where this file is written)

from collections.abc import Mapping, Sequence
from typing import Any

import spconv.pytorch as spconv
import torch
from torch import Tensor, nn

BLOCKS = {14: (1,) * 8, 18: (2,) * 8, 34: (2, 3, 4, 6, 2, 2, 2, 2), 50: (2, 3, 4, 6, 2, 2, 2, 2)}
STEM_CHANNELS = 32
PLANES = (32, 64, 128, 256, 256, 128, 96, 96)
CHANNEL_WIDTH = {"intensity": 1, "xyz": 3, "range": 1, "height": 1}


class Residual(spconv.SparseModule):
    """Two 3^3 convolutions, or 1^3, 3^3 and 1^3 with a wider output, and a skip connection."""

    def __init__(self, in_channels: int, planes: int, bottleneck: bool, key: str) -> None:
        super().__init__()
        out_channels = 4 * planes if bottleneck else planes
        widths = (in_channels, planes, planes, out_channels) if bottleneck else (in_channels, planes, planes)
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        self.layers = len(kernels)
        for i, kernel in enumerate(kernels):
            setattr(self, f"conv{i + 1}", _subm(widths[i], widths[i + 1], kernel, key))
            setattr(self, f"norm{i + 1}", nn.BatchNorm1d(widths[i + 1]))
        self.downsample = None
        if in_channels != out_channels:
            self.downsample = nn.ModuleList([_subm(in_channels, out_channels, 1, key), nn.BatchNorm1d(out_channels)])

    def forward(self, x: Any) -> Any:
        """Refine features; the voxels stay."""
        out = x
        for i in range(1, self.layers + 1):
            out = getattr(self, f"conv{i}")(out)
            out = out.replace_feature(getattr(self, f"norm{i}")(out.features))
            if i < self.layers:
                out = out.replace_feature(out.features.relu())
        skip = x.features
        if self.downsample is not None:
            skip = self.downsample[1](self.downsample[0](x).features)
        return out.replace_feature((out.features + skip).relu())


class MinkUNet(nn.Module):
    """See the top of the file; the arguments are those that OpenPCDet gives every 3D backbone."""

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        input_channels: int,
        grid_size: Sequence[int],
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        **_: Any,
    ) -> None:
        super().__init__()
        self.model_cfg = model_cfg
        self.voxel_size, self.point_cloud_range = voxel_size, point_cloud_range
        # (z, y, x), rounded up: a strided convolution drops what a whole number of its steps does not cover.
        self.sparse_shape = [-(-int(cells) // 16) * 16 for cells in grid_size[::-1]]
        self.channels = tuple(model_cfg.get("CHANNELS", ("intensity", "xyz", "range")))
        self.intensity = (float(model_cfg.get("INTENSITY_MEAN", 0.0)), float(model_cfg.get("INTENSITY_STD", 1.0)))
        depth, width = int(model_cfg.get("DEPTH", 34)), float(model_cfg.get("WIDTH", 1.0))
        stem, *planes = (max(1, round(width * channels)) for channels in (STEM_CHANNELS, *PLANES))
        in_channels = sum(CHANNEL_WIDTH[name] for name in self.channels)
        self.conv0p1s1 = _subm(in_channels, stem, int(model_cfg.get("STEM_KERNEL_SIZE", 3)), "stem")
        self.bn0 = nn.BatchNorm1d(stem)
        self.num_point_features = self._add_stages(stem, planes, depth)

    def _add_stages(self, stem: int, planes: Sequence[int], depth: int) -> int:
        bottleneck = depth == 50
        channels, skips = stem, [stem]
        for i in range(1, 5):
            down = spconv.SparseConv3d(channels, channels, 2, stride=2, bias=False, indice_key=f"down{i}")
            self.add_module(f"conv{i}p{2 ** (i - 1)}s2", down)
            self.add_module(f"bn{i}", nn.BatchNorm1d(channels))
            channels = self._add_blocks(i, channels, planes[i - 1], depth, bottleneck)
            skips.append(channels)
        skips.pop()
        for i in range(4, 8):
            up = spconv.SparseInverseConv3d(channels, planes[i], 2, bias=False, indice_key=f"down{8 - i}")
            self.add_module(f"convtr{i}p{2 ** (8 - i)}s2", up)
            self.add_module(f"bntr{i}", nn.BatchNorm1d(planes[i]))
            channels = self._add_blocks(i + 1, planes[i] + skips.pop(), planes[i], depth, bottleneck)
        return channels

    def _add_blocks(self, stage: int, channels: int, planes: int, depth: int, bottleneck: bool) -> int:
        stride = 2**stage if stage <= 4 else 2 ** (8 - stage)
        blocks = nn.ModuleList()
        for _ in range(BLOCKS[depth][stage - 1]):
            blocks.append(Residual(channels, planes, bottleneck, f"subm{stride}"))
            channels = 4 * planes if bottleneck else planes
        self.add_module(f"block{stage}", blocks)
        return channels

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Add point_features, point_coords and encoded_spconv_tensor to OpenPCDet's batch."""
        coords = batch_dict["voxel_coords"].int()  # (N, 4): batch, z, y, x
        feats = self.inputs(batch_dict["voxel_features"])
        x = spconv.SparseConvTensor(feats, coords, self.sparse_shape, batch_dict["batch_size"])
        outputs = self.decode(x)
        corner = coords.new_tensor(self.point_cloud_range[:3], dtype=torch.float32)
        size = coords.new_tensor(self.voxel_size, dtype=torch.float32)
        centres_m = (coords[:, [3, 2, 1]].float() + 0.5) * size + corner
        batch_dict["point_features"] = outputs["block8"].features
        batch_dict["point_coords"] = torch.cat([coords[:, :1].float(), centres_m], dim=1)
        batch_dict["encoded_spconv_tensor"] = outputs["block3"]
        batch_dict["encoded_spconv_tensor_stride"] = 8
        return batch_dict

    def inputs(self, voxel_features: Tensor) -> Tensor:
        """(N, C) of the pre-trained input from the voxels' mean x, y, z, intensity, ... in OpenPCDet's order."""
        xyz_m = voxel_features[:, :3]
        mean, std = self.intensity
        columns = {
            "intensity": (voxel_features[:, 3:4] - mean) / std,
            "xyz": xyz_m,
            "range": xyz_m.norm(dim=1, keepdim=True),
            "height": xyz_m[:, 2:],
        }
        return torch.cat([columns[name] for name in self.channels], dim=1)

    def decode(self, x: Any) -> dict[str, Any]:
        """Run the network; outputs of block1 .. block8 by name."""
        x = self._enter("conv0p1s1", "bn0", x)
        outputs, skips = {}, [x]
        for i in range(1, 5):
            x = self._enter(f"conv{i}p{2 ** (i - 1)}s2", f"bn{i}", x)
            x = outputs[f"block{i}"] = self._blocks(i, x)
            skips.append(x)
        skips.pop()
        for i in range(4, 8):
            x = self._enter(f"convtr{i}p{2 ** (8 - i)}s2", f"bntr{i}", x)
            x = x.replace_feature(torch.cat([x.features, skips.pop().features], dim=1))
            x = outputs[f"block{i + 1}"] = self._blocks(i + 1, x)
        return outputs

    def _enter(self, conv: str, norm: str, x: Any) -> Any:
        x = self.get_submodule(conv)(x)
        return x.replace_feature(self.get_submodule(norm)(x.features).relu())

    def _blocks(self, stage: int, x: Any) -> Any:
        for block in self.get_submodule(f"block{stage}").children():
            x = block(x)
        return x


def _subm(in_channels: int, out_channels: int, kernel_size: int, key: str) -> nn.Module:
    return spconv.SubMConv3d(in_channels, out_channels, kernel_size, bias=False, indice_key=f"{key}k{kernel_size}")
