"""A spec says the same on every machine that it travels to."""

import pickle
import subprocess
import sys

import pytest

from hilda_cache.teachers.spec import TeacherSpec, parse_source
from hilda_schema.errors import UsageError


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("facebook/dinov2-small", ("hub", "facebook/dinov2-small", "", "")),
        ("facebook/dinov2-small@v1.0", ("hub", "facebook/dinov2-small", "", "v1.0")),
        ("facebook/dinov2-small@refs/pr/1", ("hub", "facebook/dinov2-small", "", "refs/pr/1")),
        ("package.module:factory", ("module", "package.module", "factory", "")),
        ("module:Class.build", ("module", "module", "Class.build", "")),
        ("timm:resnet18.a1_in1k", ("timm", "resnet18.a1_in1k", "", "")),
    ],
)
def test_the_forms_of_a_source(text, want):
    source = parse_source(text)
    assert (source.kind, source.place, source.factory, source.revision) == want
    assert source.text == text
    assert parse_source(source.text) == source


def test_folders_and_files_are_known_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "net.py").write_text("")
    monkeypatch.chdir(tmp_path)
    specs = [TeacherSpec("a", source) for source in ("org/model", "./org/model/", "timm:org/model", "net.py:make")]
    monkeypatch.chdir("/")
    model, net = tmp_path / "org" / "model", tmp_path / "net.py"
    assert [spec.source for spec in specs] == [str(model), str(model), f"timm:{model}", f"{net}:make"]
    assert [parse_source(spec.source).public for spec in specs] == ["model", "model", "timm:model", "net.py:make"]


@pytest.mark.parametrize("text", ["", "gpt2", "/no/such/folder", "./a/b", "../b", "no.py:make", "a/b/c", "a b:c", "m:"])
def test_anything_else_is_refused_with_the_forms(text):
    with pytest.raises(UsageError, match=r"give a Hugging Face id .*module:factory"):
        parse_source(text)


def test_a_spec_is_a_value():
    spec = TeacherSpec("dino", "facebook/dinov2-small@main", layers=(-2, "-1"), image_size=(224, 448))
    same = TeacherSpec("dino", "facebook/dinov2-small", layers=("-2", "-1 "), image_size=[224, 448], revision="main")
    assert spec == same
    assert hash(spec) == hash(same)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert (spec.source, spec.revision) == ("facebook/dinov2-small", "main")
    assert spec.layers == ("-2", "-1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Dino"}, "teacher name 'Dino'"),
        ({"name": "../dino"}, "teacher name"),
        ({"layers": ()}, "no layer"),
        ({"layers": ("1", "")}, "no layer, or an empty one"),
        ({"image_size": (0, 448)}, "image size"),
        ({"image_size": (224,)}, "image size"),
        ({"norm": "none"}, "norm 'none' is not known"),
        ({"source": "a/b@v1", "revision": "v2"}, "two revisions, 'v1' and 'v2'"),
    ],
)
def test_what_cannot_be_right_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        TeacherSpec(**({"name": "dino", "source": "facebook/dinov2-small"} | options))


def test_a_spec_is_made_without_loading_torch():
    code = "import sys, hilda_cache.teachers; print(sorted({'torch', 'transformers', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
