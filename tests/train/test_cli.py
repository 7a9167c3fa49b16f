"""The command line: one line for every mistake."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize(
    ("assignments", "code", "words"),
    [
        (
            ["train.maxsteps=4"],
            2,
            "error [usage]: --set: there is no key 'train.maxsteps'\n  -> did you mean train.max_steps?",
        ),
        (["studnet.width=1"], 2, "there is no key 'studnet'\n  -> did you mean student?"),
        (["data.gap_s=7"], 1, "no frame has neighbours 7 s before and after it: the frames are 0.1 s apart"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(start_fit, tmp_path, assignments, code, words):
    process = start_fit(tmp_path / "run", *assignments)
    assert process.wait() == code, process.said
    assert words in process.said
    assert process.said.count("error [") == 1
    assert "Traceback" not in process.said
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_and_a_cache_that_is_not_there(start_fit, tmp_path, curve):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    process = start_fit(tmp_path / "mine", cache=tmp_path / "nowhere")  # said before a cache is looked at
    assert process.wait() == 1
    assert process.said.endswith(f"error [train]: {tmp_path / 'mine'} is not empty\n  -> give another --out\n")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]

    process = start_fit(tmp_path / "run", cache=tmp_path / "nowhere")
    assert process.wait() == 1
    assert "error [cache.not-found]" in process.said
    assert not (tmp_path / "run").exists()


def test_words_that_no_recipe_cache_or_device_is_called(zygote, toy_recipe, toy_cache, tmp_path):
    out = ("--out", tmp_path / "run")
    for words, said in (
        (("fit", "hildda", "--cache", toy_cache, *out), "there is no recipe 'hildda'\n  -> did you mean hilda?"),
        (("fit", toy_recipe, *out), "no cache is given"),
        (("fit", toy_recipe, "--cache", toy_cache, "--device", "gpu", *out), "--device gpu is not known"),
        (("fit", toy_recipe, "--cache", toy_cache), "Missing option '--out'"),
        (("export", tmp_path, "--to", "onnx", *out), "holds no run"),
    ):
        process = zygote.start(*words)
        assert process.wait() in {1, 2}, process.said
        assert said in process.said
        assert "Traceback" not in process.said
    if not torch.cuda.is_available():
        process = zygote.start("fit", toy_recipe, "--cache", toy_cache, "--device", "cuda", *out)
        assert process.wait() == 2
        assert "torch sees no GPU" in process.said


def test_recipes_are_listed(zygote):
    process = zygote.start("recipes")
    assert process.wait() == 0
    lines = process.said.splitlines()
    assert {"hilda", "scalr", "demo"} <= {line.split()[0] for line in lines}
    assert all(len(line.split()) > 1 for line in lines)
