"""The look that the pictures and pages of both stages share: white paper, dark panels, one colour for one meaning.

Categories are told apart by Okabe and Ito's colours, which people who do not tell red from green can tell apart too.
Names of colour maps are matplotlib's; both are even in lightness, so they also work printed in grey.
"""

from __future__ import annotations

FONT = "DejaVu Sans"  # comes with matplotlib

PAPER, INK, SOFT, LINE = "#ffffff", "#1f2328", "#59636e", "#d0d7de"
PANEL, UNSEEN, RING, LABEL = "#12161c", "#454d57", "#6b7580", "#ffffff"
"""Behind points; points that no camera sees; rings of distance; words on a panel."""

SKY, GREEN, ORANGE, VERMILION, YELLOW, PURPLE = "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#f0e442", "#cc79a7"
CURVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # those that show on white, in this order

COSINE_MAP = "plasma"  # alike is bright
DISAGREEMENT_MAP = "inferno"  # different is bright

RINGS_M = (10, 20, 40)  # of distance, in a view from above
DOT, DOT_LIMITS = 0.75, (0.0022, 0.0065)
"""Diameter of a point on a sweep of N points, over its panel's longer side, is DOT / sqrt(N) within these limits."""
REACH_M = (15.0, 60.0)  # a view from above shows at least, at most
