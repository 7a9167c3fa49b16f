"""YAML without its traps: what PyYAML would misread is read right, and what could do harm is refused."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_schema.errors import UsageError
from hilda_train.config.strict_yaml import MAX_BYTES, MAX_DEPTH, dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("+4", 4),
        ("2.", 2.0),
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("true", True),
        ("012", "012"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2001-01-01", "2001-01-01"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("~", None),
        ("", None),
        ("'12'", "12"),
        ("0.5 epochs", "0.5 epochs"),
        ("4%", "4%"),
        ("[block7, block8]", ["block7", "block8"]),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    read = parse(f"key: {text}", "x")["key"]
    assert read == value
    assert type(read) is type(value)


def test_a_merge_key_is_a_key_like_any_other():
    assert parse("<<: {a: 1}", "x") == {"<<": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x 1", "f.yaml:1:4: anchors and aliases"),
        ("a: 1\nb: *x", "f.yaml:2:4: anchors and aliases"),
        ("a: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !mine 3", "the tag !mine"),
        ("a: 1\na: 2", "f.yaml:2:1: 'a' is there twice"),
        ("train:\n  a: 1\n  a: 2", "f.yaml:3:3: 'a' is there twice"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1: a second document"),
        ("? [a]\n: 1", "a key is not a plain word"),
        ("a: {b", "f.yaml:1:6: expected"),
        ("a: 1\nb: -1e999", "f.yaml:2:4: -1e999 is beyond all numbers"),
        ("[" * (MAX_DEPTH + 1), f"f.yaml:1:{MAX_DEPTH + 1}: nested deeper than {MAX_DEPTH}"),
        ("\x00", "f.yaml is not UTF-8 YAML"),
        (b"\xff\xfe\xfa", "f.yaml is not UTF-8 YAML"),
        ("#" * (MAX_BYTES + 1), f"f.yaml has {MAX_BYTES + 1} bytes"),
    ],
)
def test_what_a_config_does_not_need_is_refused_with_its_place(text, words):
    with pytest.raises(UsageError) as error:
        parse(text, "f.yaml")
    assert error.value.message.startswith(words) or words in error.value.message


def test_bombs_and_code_do_nothing(tmp_path):
    """In a process with 1 GiB of address space: 10^9 aliased items, 10^5 brackets, and a call to the shell."""
    marker = tmp_path / "ran"
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
    )
    texts = [bomb, "[" * 100_000, f"a: !!python/object/apply:os.system ['touch {marker}']"]
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from hilda_schema.errors import UsageError
from hilda_train.config.strict_yaml import parse
for text in {texts!r}:
    try:
        parse(text, "bomb")
    except UsageError as error:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["refused"] * 3, done.stderr
    assert not marker.exists()


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
numbers = st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
yaml_like = st.sampled_from(["no", "1e-3", "1e3", "012", "null", "~", "", "12:30", "true", "=", "- a", "0x1F", "<<"])
values = st.recursive(
    st.none() | st.booleans() | numbers | words | yaml_like,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words.filter(bool), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(words.filter(bool), values, max_size=4))
def test_what_is_written_is_read_back(value):
    text = dump(value)
    assert parse(text, "x") == value
    assert dump(parse(text, "x")) == text
