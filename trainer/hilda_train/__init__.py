"""Stage two: a teacher cache in, a pre-trained LiDAR backbone out."""
