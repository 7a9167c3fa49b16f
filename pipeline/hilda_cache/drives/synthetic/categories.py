"""The names nuScenes gives to things, with the indices its per-point labels use.

The order is nuScenes-lidarseg's: 0 is noise, 1 to 23 are annotated objects, 24 to 31 are stuff. Datasets that
merge these classes (to nuScenes' own 16, to a team's own) can then be used on synthetic drives unchanged.
"""

from __future__ import annotations

CATEGORIES = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)

INDEX = {name: index for index, name in enumerate(CATEGORIES)}

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)

# Share of an object's surface that some camera sees: nuScenes' four levels and their lower bounds.
VISIBILITY = (("v0-40", 0.0), ("v40-60", 0.4), ("v60-80", 0.6), ("v80-100", 0.8))
