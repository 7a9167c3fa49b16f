"""Harnesses of what stage two is given: configs, class files, checkpoints, weights, prototypes, a run's folder."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save, save_file

from hilda_train.checkpoint import Snapshot, newest, open_checkpoint
from hilda_train.checkpoint import save as save_checkpoint
from hilda_train.config import FitConfig, apply_set, dump_effective
from hilda_train.evaluate.classes import load_classes
from hilda_train.evaluate.protocols import load_protocol
from hilda_train.evaluate.untrained import text_prototypes
from hilda_train.recipes import load_recipe
from hilda_train.run import read_config, read_run
from hilda_train.runlog import read_log
from hilda_train.students.weights import load_weights

Prepared = tuple[Callable[[bytes], object], list[bytes]]

CLASSES = b"about: x\nclasses: [car, road]\ndatasets:\n  toy:\n    ignored: [0]\n    car: [1]\n    road: [2, 3]\n"


def configs(work: Path) -> Prepared:
    """A recipe, a `--set` value, a class file, a protocol (the first byte says which)."""
    path = work / "x.yaml"
    default = load_recipe("hilda")

    def target(data: bytes) -> None:
        kind, text = (data[0] % 4 if data else 0), data[1:]
        path.write_bytes(text)
        if kind == 0:
            config = load_recipe(str(path))
            assert dump_effective(config)
        elif kind == 1:
            apply_set(default, [text.decode("utf-8", "replace")])
        elif kind == 2:
            load_classes(str(path)).table("toy")
        else:
            load_protocol(str(path))

    protocol = Path(load_protocol.__code__.co_filename).parent
    return target, [
        b"\0extends: hilda\ntrain: {max_steps: 100}\nstudent: {width: 0.5}\n",
        b"\0" + dump_effective(default).encode()[:4000],
        b"\1optim.lr=1e-3",
        b"\1student={arch: waffleiron, depth: 2}",
        b"\2" + CLASSES,
        *(b"\3" + each.read_bytes() for each in sorted(protocol.glob("*.yaml"))[:2]),
    ]


def checkpoints(work: Path) -> Prepared:
    """A file of a checkpoint (the first byte says which), with right checksums unless it is their file."""
    folder, wanted = work / "checkpoints", {"w": torch.zeros(2, 3), "n": torch.tensor(1)}
    shutil.rmtree(folder, ignore_errors=True)
    path = save_checkpoint(folder, Snapshot(7, {"model": wanted}, {"rate": 0.5}), keep=2)
    names = ("SHA256SUMS", "model.safetensors", "state.json")
    before = {name: (path / name).read_bytes() for name in names}

    def target(data: bytes) -> None:
        name = names[data[0] % 3] if data else names[0]
        content = before | {name: data[1:]}
        if name != "SHA256SUMS":
            lines = [f"{hashlib.sha256(content[each]).hexdigest()}  {each}\n" for each in names[1:]]
            content["SHA256SUMS"] = "".join(lines).encode()
        for each, text in content.items():
            (path / each).write_bytes(text)
        newest(folder, lambda warning: None)
        found = open_checkpoint(path)
        found.specs("model")
        found.read("model", wanted)

    return target, [bytes([number]) + before[name] for number, name in enumerate(names)]


def weights(work: Path) -> Prepared:
    """Weights to start from: safetensors, or what torch.save wrote (the first byte says which)."""
    model = torch.nn.Linear(3, 2)
    plain = work / "plain.pt"

    def target(data: bytes) -> None:
        path = work / ("w.safetensors" if data[:1] == b"\0" else "w.pt")
        path.write_bytes(data[1:])
        load_weights(model, path)

    seeds = [b"\0" + save(model.state_dict())]
    for content in (model.state_dict(), {"state_dict": model.state_dict()}):
        torch.save(content, plain)
        seeds.append(b"\1" + plain.read_bytes())
        torch.save(content, plain, _use_new_zipfile_serialization=False)
        seeds.append(b"\1" + plain.read_bytes())
    return target, [*seeds, b"\1" + pickle.dumps(print), b"\1" + pickle.dumps({"a": [1]})]


def prototypes(work: Path) -> Prepared:
    """Vectors of classes."""
    (work / "classes.yaml").write_bytes(CLASSES)
    classes, path = load_classes(str(work / "classes.yaml")), work / "prototypes.safetensors"
    save_file({"car": torch.ones(4), "road": torch.zeros(4)}, path, metadata={"space": "tokens"})
    seed = path.read_bytes()

    def target(data: bytes) -> None:
        path.write_bytes(data)
        assert text_prototypes(path, classes, 4).shape == (2, 4)

    return target, [seed, save({"car": torch.ones(4)}), seed[:20]]


def runs(work: Path) -> Prepared:
    """A run's description, config and log (the first byte says which)."""
    run = work / "run"
    run.mkdir(exist_ok=True)
    described = json.dumps({"caches": [{"dataset": "toy", "root_sha256": "0"}], "environment": {}}).encode()

    def target(data: bytes) -> None:
        kind = data[0] % 3 if data else 0
        name = ("run.json", "config.yaml", "log.jsonl")[kind]
        (run / name).write_bytes(data[1:])
        if kind == 0:
            read_run(run)
        elif kind == 1:
            assert isinstance(read_config(run), FitConfig)
        else:
            assert all(isinstance(line["step"], int) for line in read_log(run / name))

    config = dump_effective(load_recipe("hilda")).encode()
    return target, [b"\0" + described, b"\1" + config, b'\2{"step": 1, "loss": 0.5}\n{"step": 2, "loss": "nan"}\n']


HARNESSES = {each.__name__: each for each in (configs, checkpoints, weights, prototypes, runs)}
