"""A procedural driving world, recorded as a nuScenes v1.0 tree.

For tests, demonstrations and benchmarks that may not depend on a dataset's licence: streets, parks and dual
carriageways with buildings, trees, parked and moving vehicles, cyclists and people, seen by a 32-beam LiDAR and
six cameras. Everything is ray cast against the same analytic primitives, so LiDAR and images agree to the pixel;
everything that moves does so at constant speed along the road. The LiDAR takes a sweep at one instant: there is
no motion distortion in it. Images are taken at their own time stamps, up to 43 ms before the sweep.

Modules, from the inside out: `primitives` and `noise` (geometry, texture) - `road` (ground), `items` and `scenery`
(objects) - `styles` and `layout` (scenes) - `world`, `rig`, `scene` - `raycast`, `lidar`, `shadow`, `materials`,
`shading`, `render` (sensing) - `tables` and `write` (the tree).
"""

from __future__ import annotations

from hilda_cache.drives.synthetic.tables import VERSION
from hilda_cache.drives.synthetic.write import make_drive

__all__ = ["VERSION", "make_drive"]
