"""From caches to batches: clips, augmentation, voxels, occupancy targets, loading."""
