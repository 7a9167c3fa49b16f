"""What the light heads share: detection, scene flow and semantic occupancy on a frozen or fine-tuned backbone.

protocol.py: what a YAML file says; items.py: sweeps as the student sees them; bev.py: the trunk; training.py: the loop;
commands.py: from options to a result. A task brings its targets, its last layers, its loss and its metric.
"""
