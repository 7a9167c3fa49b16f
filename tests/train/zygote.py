"""Runs `hilda-train` as real processes without the seconds that importing torch takes in each.

This process imports everything once and then forks a child for every order it is given, one JSON object a line:

    {"argv": [...], "env": {...}, "output": "file"} -> {"pid": 123}      the child is `hilda-train ARGV`,
                                                                          or `python ARGV` where that names a script
    {"wait": 123} -> {"code": 0}                                          negative: the signal that ended it
"""

import gc
import importlib
import json
import os
import runpy
import sys

from hilda_train.cli import main

# All that a run imports on its way.
for name in (
    "hilda_train.commands",
    "hilda_train.students.minkunet",
    "hilda_train.students.waffleiron",
    "pyarrow.compute",
    "torch._inductor.config",
    "torch.utils.tensorboard",
):
    importlib.import_module(name)
gc.freeze()  # a child that ends looks at none of this again


def obey(order):
    """Carry an order out; True in the child, which is to become `hilda-train`."""
    if "wait" in order:
        _, status = os.waitpid(order["wait"], 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
        return False
    pid = os.fork()
    if pid:
        print(json.dumps({"pid": pid}), flush=True)
        return False
    os.setsid()
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(order["env"])
    sys.argv = ["hilda-train", *order["argv"]]
    return True


if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    while line := sys.stdin.readline():
        if obey(json.loads(line)):
            if sys.argv[1].endswith(".py"):
                sys.argv = sys.argv[1:]
                runpy.run_path(sys.argv[0], run_name="__main__")
            else:
                main()
            break
