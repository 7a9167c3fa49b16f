"""What is written of the machine says what a result depends on, and nothing private."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch

from hilda_train.environment import VARIABLES, environment, source_state


@pytest.fixture
def repository(tmp_path):
    """A git repository with a committed package."""

    def git(*words):
        identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
        done = subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("venv\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_the_source_is_a_commit_and_whether_it_was_changed(repository):
    root, commit = repository
    assert source_state(root / "package") == {"commit": commit, "changed": False}
    (root / "notes.txt").write_text("beside the package")
    assert source_state(root / "package") == {"commit": commit, "changed": False}
    (root / "package" / "code.py").write_text("a = 2\n")
    assert source_state(root / "package") == {"commit": commit, "changed": True}


def test_an_installation_inside_somebodys_repository_is_not_of_it(repository, tmp_path_factory):
    root, _ = repository
    (root / "venv" / "package").mkdir(parents=True)
    assert source_state(root / "venv" / "package") == {}
    assert source_state(tmp_path_factory.mktemp("elsewhere")) == {}


def test_it_names_versions_and_harmless_variables_and_nothing_else(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MKL_CBWR", "/home/secret canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert found["variables"] == {"OMP_NUM_THREADS": "3"}
    text = json.dumps(found)
    assert "canary" not in text
    assert os.uname().nodename not in text.replace(found["system"], "")
