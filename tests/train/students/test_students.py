"""The one door to all students."""

import pytest
import torch

from hilda_schema.errors import UsageError
from hilda_train.students import STUDENTS, Student, build_student
from hilda_train.students.minkunet import MinkUNet
from hilda_train.students.waffleiron import WaffleIron


def test_builds_by_name_with_the_class_options():
    with torch.device("meta"):
        minkunet = build_student({"name": "minkunet", "depth": 18, "width": 0.5, "levels": ["block8"]})
        waffleiron = build_student({"name": "waffleiron", "depth": 6, "width": 128})
    assert isinstance(minkunet, MinkUNet)
    assert minkunet.channels == (48,)
    assert isinstance(waffleiron, WaffleIron)
    assert waffleiron.channels == (128, 128)
    assert all(isinstance(student, Student) for student in (minkunet, waffleiron))
    assert set(STUDENTS) == {"minkunet", "waffleiron"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "minknet"}, ["'minknet' is not known", "minkunet, waffleiron"]),
        ({}, ["None is not known"]),
        ({"name": "minkunet", "detph": 18}, ["no option 'detph'", "depth"]),
        ({"name": "minkunet", "depth": 19}, ["no MinkUNet19", "14, 18, 34, 50"]),
    ],
)
def test_wrong_requests_name_what_there_is(config, words):
    with pytest.raises(UsageError) as error:
        build_student(config)
    assert all(word in str(error.value) for word in words)
