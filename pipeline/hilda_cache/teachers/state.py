"""One hash for a network's weights where no file stands for them."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from hilda_schema.manifest import canonical_json


def state_sha256(model: nn.Module) -> str:
    """sha256 over the state dict, sorted by name: for every tensor its name, dtype and shape, then its bytes.

    Before the bytes of a tensor stands the canonical JSON [name, dtype, shape], then a zero byte; bytes are in C order
    and the machine's byte order.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(canonical_json([name, str(value.dtype), list(value.shape)]) + b"\0")
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
