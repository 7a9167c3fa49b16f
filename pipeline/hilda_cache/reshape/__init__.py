"""Changing what a store holds, from the store alone: no drive is read and no teacher runs.

derive.py    one part from another: fewer frames, cameras or layers, or another encoding
place.py     one sealed part into another store, by hard link or copy
target.py    a store made from stores: begun, filled, finished, and what it says of its parents
merge.py  subset.py  reencode.py     new stores
forget.py  prune.py  repair.py  migrate.py     a store in place
catalog.py  dataset_card.py          what people look at
again.py  words.py                   the command that made a store; tables
"""
