"""Detection: a centre-based head on the map from above, scored as nuScenes scores it.

classes/: what categories are merged to; targets.py: heat maps and what stands beside them; head.py: the last layers
and their loss; decode.py: from maps to boxes; metrics.py: AP and errors; task.py: all of it. quick.yaml and
standard.yaml are its protocols.
"""
