"""Semantic occupancy: what fills each cell now and in the seconds to come, from two sweeps.

labels.py: from labelled sweeps; head.py; task.py: all of it. quick.yaml and standard.yaml are its protocols.
"""
