"""Moving caches between places: only what is missing, every byte checked, resumable at any point.

files.py     one file, in pieces, against its hash        pool.py   several parts at a time
push.py      a folder to a URL                            pull.py   a folder or URL to a folder
refuse.py    what no copy may do                          cost.py   what a provider charges for it
cli.py, commands.py   words
"""
