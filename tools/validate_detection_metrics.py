"""Compares our detection score with the official nuScenes devkit's, on random boxes.

    python tools/validate_detection_metrics.py [--environment FOLDER]

The devkit gets a virtual environment of its own (made once, needs the package index): its scoring needs numpy and
pyquaternion alone, so the rest of what it depends on is stood in for by empty modules. Run with the project's own
interpreter; not part of the test suite. Exits with 1 if anything disagrees.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import types
import venv
from pathlib import Path

import numpy as np

WORLDS = 200
TOLERANCE = 1e-9
DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
ERRORS = {"translation": "trans_err", "scale": "scale_err", "orientation": "orient_err", "velocity": "vel_err"}
CLASSES = {"car": {}, "barrier": {"front": False, "moves": False}, "traffic_cone": {"turns": False, "moves": False}}
NOT_NEEDED = (
    "cv2", "matplotlib", "matplotlib.pyplot", "matplotlib.axes", "sklearn.metrics", "PIL", "tqdm", "shapely",
    "shapely.geometry", "descartes", "nuscenes.lidarseg", "nuscenes.panoptic", "nuscenes.utils.data_classes",
)  # fmt: skip


def main() -> int:
    """Make, score twice, compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "hilda-devkit-metrics-env")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.score:
        print(json.dumps(devkits(json.loads(arguments.score.read_text()))))
        return 0
    worlds = [random_world(np.random.default_rng(seed)) for seed in range(WORLDS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "worlds.json"
        path.write_text(json.dumps(worlds))
        python = devkit_python(arguments.environment)
        done = subprocess.run([python, __file__, "--score", path], check=True, capture_output=True, text=True)
    version, theirs = json.loads(done.stdout)
    return compare(ours(worlds), theirs, version)


def devkit_python(environment: Path) -> Path:
    """The interpreter of the devkit's environment, made if it is not there."""
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "pyquaternion"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "nuscenes-devkit"], check=True)
    return python


def random_world(rng: np.random.Generator) -> dict:
    """True boxes and predictions of one class in a few frames: many near a true box, some of its twin, some nowhere."""
    name = list(CLASSES)[int(rng.integers(len(CLASSES)))]
    true, said = int(rng.integers(1, 30)), int(rng.integers(0, 60))
    truth = {
        "frame": rng.integers(0, 4, true),
        "centre": rng.uniform(-15, 15, (true, 2)),
        "size": rng.uniform(0.4, 6, (true, 3)),
        "yaw": rng.uniform(-np.pi, np.pi, true),
        "velocity": np.where(rng.random((true, 1)) < 0.2, np.nan, rng.normal(size=(true, 2)) * 4),
    }
    of = rng.integers(0, true, said)
    spread = rng.exponential(1.0, (said, 1))
    predicted = {
        "frame": np.where(rng.random(said) < 0.9, truth["frame"][of], rng.integers(0, 4, said)),
        "centre": truth["centre"][of] + rng.normal(size=(said, 2)) * spread,
        "size": truth["size"][of] * rng.uniform(0.7, 1.4, (said, 3)),
        "yaw": truth["yaw"][of] + rng.normal(size=said) + np.pi * (rng.random(said) < 0.2),
        "velocity": np.nan_to_num(truth["velocity"][of]) + rng.normal(size=(said, 2)),
        "score": rng.permutation(said) / (said + 1) + 1e-3,
    }
    return {"name": name, "truth": plain(truth), "predicted": plain(predicted)}


def plain(columns: dict) -> dict:
    """Lists, NaN as None."""
    return {
        key: [[None if np.isnan(v) else v for v in row] for row in value.tolist()]
        if value.ndim == 2
        else value.tolist()
        for key, value in columns.items()
    }


def ours(worlds: list[dict]) -> list[dict]:
    """What our code scores."""
    from hilda_train.evaluate.detection.metrics import FoundBoxes, class_score

    def boxes(columns: dict) -> FoundBoxes:
        count = len(columns["frame"])
        return FoundBoxes(
            frame=np.array(columns["frame"], np.int64),
            centre_m=np.array(columns["centre"], float).reshape(count, 2),
            size_m=np.array(columns["size"], float).reshape(count, 3),
            yaw_rad=np.array(columns["yaw"], float),
            velocity_mps=np.array(columns["velocity"], float).reshape(count, 2),
            score=np.array(columns.get("score", np.ones(count)), float),
        )

    flags = {"front": True, "turns": True, "moves": True}
    scores = [class_score(boxes(w["truth"]), boxes(w["predicted"]), **(flags | CLASSES[w["name"]])) for w in worlds]
    return [{"ap": list(s.ap), "errors": {k: None if np.isnan(v) else v for k, v in s.errors.items()}} for s in scores]


def devkits(worlds: list[dict]) -> tuple[str, list[dict]]:
    """What the devkit scores; runs in its environment."""
    import importlib.metadata
    import importlib.util

    package = types.ModuleType("nuscenes")  # its own __init__ would open maps and images
    package.__path__ = list(importlib.util.find_spec("nuscenes").submodule_search_locations)
    sys.modules["nuscenes"] = package
    for name in NOT_NEEDED:
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["nuscenes.utils.data_classes"].Box = object
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.utils import center_distance
    from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
    from nuscenes.eval.detection.data_classes import DetectionBox

    def boxes(columns: dict, name: str) -> EvalBoxes:
        found = EvalBoxes()
        for k, frame in enumerate(columns["frame"]):
            length, width, height = columns["size"][k]
            yaw = columns["yaw"][k]
            box = DetectionBox(
                sample_token=str(frame),
                translation=(*columns["centre"][k], 0.0),
                size=(width, length, height),
                rotation=(np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)),
                velocity=tuple(np.nan if v is None else v for v in columns["velocity"][k]),
                detection_name=name,
                detection_score=columns["score"][k] if "score" in columns else -1.0,
            )
            found.add_boxes(str(frame), [box])
        return found

    results = []
    for world in worlds:
        name = world["name"]
        truth, predicted = boxes(world["truth"], name), boxes(world["predicted"], name)
        data = {d: accumulate(truth, predicted, name, center_distance, d) for d in DISTANCES_M}
        errors = {ours: float(calc_tp(data[2.0], 0.1, theirs)) for ours, theirs in ERRORS.items()}
        results.append({"ap": [float(calc_ap(data[d], 0.1, 0.1)) for d in DISTANCES_M], "errors": errors})
    return importlib.metadata.version("nuscenes-devkit"), results


def compare(mine: list[dict], theirs: list[dict], version: str) -> int:
    """Print the largest differences; 1 where one is too large."""
    worst = {
        "AP": max(abs(a - b) for m, t in zip(mine, theirs, strict=True) for a, b in zip(m["ap"], t["ap"], strict=True))
    }
    for name in ERRORS:
        pairs = [(m["errors"][name], t["errors"][name]) for m, t in zip(mine, theirs, strict=True)]
        worst[f"{name} error"] = max(abs(a - b) for a, b in pairs if a is not None)
    print(f"nuscenes-devkit {version}, {len(mine)} random worlds of one class each, largest difference:")
    for name, value in worst.items():
        print(f"  {'ok  ' if value <= TOLERANCE else 'FAIL'} {name:20} {value:.1e}")
    spread = np.array([each["ap"] for each in mine])
    print(f"  AP of these worlds: {spread.min():.2f} to {spread.max():.2f}, mean {spread.mean():.2f}")
    return int(max(worst.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
