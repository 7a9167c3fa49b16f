"""Scene flow: how every point moves over ground until the next sweep, the vehicle's own motion taken out.

labels.py: from tracked boxes; head.py: two sweeps from above, then a few layers for each point; metrics.py: the
three-way end point error; task.py: all of it. quick.yaml and standard.yaml are its protocols.
"""
