"""Class files: each shipped one covers its dataset, agrees with the dataset's own words, and mistakes are named."""

from __future__ import annotations

import numpy as np
import pytest

from hilda_cache.drives.synthetic.categories import CATEGORIES, INDEX
from hilda_schema.errors import UsageError
from hilda_train.evaluate.classes import IGNORED, class_files, load_classes

# What the nuScenes-lidarseg challenge merges, by the devkit's names; everything else is ignored.
NUSCENES = {
    "barrier": ["movable_object.barrier"],
    "bicycle": ["vehicle.bicycle"],
    "bus": ["vehicle.bus.bendy", "vehicle.bus.rigid"],
    "car": ["vehicle.car"],
    "construction_vehicle": ["vehicle.construction"],
    "motorcycle": ["vehicle.motorcycle"],
    "pedestrian": [f"human.pedestrian.{who}" for who in ("adult", "child", "construction_worker", "police_officer")],
    "traffic_cone": ["movable_object.trafficcone"],
    "trailer": ["vehicle.trailer"],
    "truck": ["vehicle.truck"],
    "driveable_surface": ["flat.driveable_surface"],
    "other_flat": ["flat.other"],
    "sidewalk": ["flat.sidewalk"],
    "terrain": ["flat.terrain"],
    "manmade": ["static.manmade"],
    "vegetation": ["static.vegetation"],
}
KITTI_IDS = [0, 1, 10, 11, 13, 15, 16, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 52, 60, 70, 71, 72, 80, 81, 99]
KITTI_IDS += range(252, 260)
# learning_map of the SemanticKITTI API, less one: 0 there is -1 here.
KITTI = {0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11,
         49: 12, 50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0, 252: 1, 253: 7, 254: 6,
         255: 8, 256: 5, 257: 5, 258: 4, 259: 5}  # fmt: skip
EVERY_ID = {"nuscenes": range(32), "semantickitti": KITTI_IDS, "pandaset": range(43)}


def ids(numbers):
    return np.array(list(numbers), np.uint16)


@pytest.mark.parametrize("name", class_files())
def test_a_file_covers_its_datasets_and_every_class_occurs_in_one(name):
    classes = load_classes(name)
    seen = set()
    for dataset in classes.tables:
        known = {category for category in EVERY_ID[dataset] if classes.tables[dataset][category] != -2}
        assert known == set(EVERY_ID[dataset]) or name == "synthetic"
        seen |= set(classes.merge(ids(known), dataset).tolist()) - {IGNORED}
        assert (classes.tables[dataset] != -2).sum() == len(known)  # and no id that the dataset does not have
    assert seen == set(range(len(classes.names)))


def test_nuscenes_is_merged_as_the_challenge_does():
    classes = load_classes("nuscenes16")
    assert list(classes.names) == list(NUSCENES)  # the order of the devkit
    merged = classes.merge(ids(range(32)), "nuscenes")
    for index, category in enumerate(CATEGORIES):
        owner = [name for name, members in NUSCENES.items() if category in members]
        assert merged[index] == (classes.names.index(owner[0]) if owner else IGNORED), category


def test_semantickitti_is_merged_as_its_api_does():
    merged = load_classes("semantickitti19").merge(ids(KITTI_IDS), "semantickitti")
    assert merged.tolist() == [KITTI[number] - 1 for number in KITTI_IDS]


def test_synthetic_classes_are_nuscenes_of_what_a_synthetic_drive_has(tiny_drive):
    """No id that the drive holds is unknown, and no class differs from nuScenes' own."""
    from hilda_cache.drives import open_drive

    drive = open_drive("nuscenes", tiny_drive)
    frames = [info for scene in drive.scenes() for info in drive.frames(scene)]
    found = {int(label) for info in frames for label in np.unique(drive.read(info).points.label)}
    synthetic, nuscenes = load_classes("synthetic"), load_classes("nuscenes16")
    known = ids(i for i in range(32) if synthetic.tables["nuscenes"][i] != -2)
    assert found <= set(known.tolist())
    theirs = nuscenes.merge(known, "nuscenes")
    for mine, other in zip(synthetic.merge(known, "nuscenes"), theirs, strict=True):
        assert (mine == other == IGNORED) or synthetic.names[mine] == nuscenes.names[other]
    assert INDEX["vehicle.trailer"] not in known


def test_coarse_classes_never_split_a_fine_one():
    """Points that nuScenes' 16 and PandaSet's 17 hold to be one thing are one coarse thing."""
    coarse = load_classes("coarse8")
    for fine, dataset in (("nuscenes16", "nuscenes"), ("semantickitti19", "semantickitti"), ("pandaset17", "pandaset")):
        everyone = ids(EVERY_ID[dataset])
        groups = load_classes(fine).merge(everyone, dataset)
        merged = coarse.merge(everyone, dataset)
        for group in set(groups.tolist()) - {IGNORED}:
            assert len(set(merged[groups == group].tolist())) == 1, (fine, group)


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


GOOD = "about: mine\nclasses: [a, b]\ndatasets: {toy: {ignored: [0], a: [1, 7], b: [65535]}}\n"


def test_an_own_file_merges_its_own_ids(tmp_path):
    classes = load_classes(written(tmp_path, GOOD))
    assert classes.merge(ids([7, 0, 65535, 1]), "toy").tolist() == [0, IGNORED, 1, 0]
    assert classes.name == "mine"


def test_an_id_that_nobody_thought_of_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"classes mine say nothing of id 9 of toy") as raised:
        load_classes(written(tmp_path, GOOD)).merge(ids([1, 9]), "toy")
    assert "under ignored" in raised.value.remedy


def test_a_dataset_that_nobody_thought_of_is_named():
    with pytest.raises(UsageError, match="classes nuscenes16 say nothing of dataset 'pandaset'"):
        load_classes("nuscenes16").merge(ids([1]), "pandaset")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("a: [1, 7]", "a: [1, 1]"), "mentions id 1 twice"),
        (("a: [1, 7]", "a: [0]"), "mentions id 0 twice"),
        (("a: [1, 7]", "c: [1]"), "names 'c', which classes does not list"),
        (("65535", "65536"), "mentions id 65536; ids are 0 to 65535"),
        (("[a, b]", "[a, a]"), "has a name twice"),
        (("[a, b]", "[a]"), "classes"),
        (("about: mine", "abuot: mine"), "abuot"),
        (("[1, 7]", "[1.5]"), "whole number"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, change, said):
    with pytest.raises(UsageError) as raised:
        load_classes(written(tmp_path, GOOD.replace(*change)))
    assert said in str(raised.value)
    assert "mine.yaml" in str(raised.value)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="there is no class file 'nuscene16'") as raised:
        load_classes("nuscene16")
    assert "nuscenes16" in raised.value.remedy
