"""Detached signatures, with OpenSSH's own keys and programs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_cache.reshape.forget import forget
from hilda_cache.share.pull import plan_pull, pull
from hilda_cache.share.push import push
from hilda_cache.share.signature import statement
from hilda_schema.errors import CacheCorrupt, CacheNotFound, UsageError
from hilda_schema.reader import open_cache
from hilda_schema.verify import verify

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH's client")
Tree = Callable[[Path], dict[str, str]]


def invoke(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stderr


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two keys, `anna` and `bert`, and `signers`, which trusts anna's."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("anna", "bert"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(make, check=True)
    public = (folder / "anna.pub").read_text()
    (folder / "signers").write_text(f'anna@example.com namespaces="hilda-cache" {public}')
    return folder


@pytest.fixture
def signed(store: Path, keys: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(store, tmp_path / "signed"))
    assert invoke("sign", copy, "--key", keys / "anna")[0] == 0
    return copy


def test_a_signature_is_checked_with_the_store(signed: Path, keys: Path) -> None:
    code, said = invoke("verify", signed, "--signers", keys / "signers")
    assert (code, "signed by anna@example.com" in said) == (0, True)
    assert verify(signed).extra == []  # it belongs to the store


def test_a_signature_is_one_that_openssh_checks_by_itself(signed: Path, keys: Path) -> None:
    words = ["-Y", "verify", "-f", keys / "signers", "-I", "anna@example.com", "-n", "hilda-cache"]
    text = statement(open_cache(signed).manifest.root_sha256)
    assert text == f"sha256:{open_cache(signed).manifest.root_sha256}\n".encode()
    subprocess.run(["ssh-keygen", *words, "-s", signed / "root.sig"], input=text, check=True, capture_output=True)


def test_other_keys_other_contents_and_other_purposes_are_refused(signed: Path, keys: Path, tmp_path: Path) -> None:
    ask = ("verify", signed, "--signers", keys / "signers")
    good = (signed / "root.sig").read_bytes()
    invoke("sign", signed, "--key", keys / "bert", "--out", tmp_path / "bert.sig")
    with pytest.raises(CacheCorrupt, match=r"nobody in .*signers made this signature"):
        invoke(*ask, "--signature", tmp_path / "bert.sig")
    (tmp_path / "text").write_bytes(statement(open_cache(signed).manifest.root_sha256))
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", keys / "anna", tmp_path / "text"],
        check=True,
        capture_output=True,
    )
    with pytest.raises(CacheCorrupt, match="not of this content"):
        invoke(*ask, "--signature", tmp_path / "text.sig")
    for damaged in (b"", good[: len(good) // 2], good.replace(b"A", b"B"), b"\xff" * 100):
        (signed / "root.sig").write_bytes(damaged)
        with pytest.raises(CacheCorrupt):
            invoke(*ask)
    (signed / "root.sig").write_bytes(good)
    forget(signed, ["scene-0001"], [], "asked for")
    with pytest.raises(CacheCorrupt, match="the store changed after it was signed") as caught:
        invoke(*ask)
    assert "scene" not in caught.value.message


def test_a_signature_travels_with_the_store_and_not_with_another(
    signed: Path, store: Path, s3: Any, keys: Path, tmp_path: Path, tree: Tree
) -> None:
    push(signed, s3.network(), jobs=1)
    assert s3.tree() == tree(signed)
    code, said = invoke("verify", s3.url, "--fast", "--signers", keys / "signers")
    assert (code, "signed by anna@example.com" in said) == (0, True)
    pull(plan_pull(s3.url), tmp_path / "back", jobs=1)
    assert tree(tmp_path / "back") == tree(signed)
    push(store, s3.network(), jobs=1)  # the same content, unsigned
    assert "root.sig" not in s3.tree()
    with pytest.raises(CacheNotFound, match=r"no signature at s3://.*/root\.sig"):
        invoke("verify", s3.url, "--signers", keys / "signers")
    invoke("sign", s3.url, "--key", keys / "anna", "--out", tmp_path / "detached.sig")
    code, _ = invoke("verify", s3.url, "--signers", keys / "signers", "--signature", tmp_path / "detached.sig")
    assert code == 0


def test_mistakes_are_one_line(
    signed: Path, keys: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, message in (
        (["sign", signed, "--key", tmp_path / "none"], "is no key"),
        (["sign", signed, "--key", keys / "signers"], "did not sign"),
        (["verify", signed, "--signers", tmp_path / "none"], "is no file"),
        (["verify", signed, "--signature", signed / "root.sig"], "says nothing without --signers"),
    ):
        with pytest.raises(UsageError) as caught:
            invoke(*words)
        assert message in caught.value.message
        assert "\n" not in str(caught.value)
    push(signed, s3.network(), jobs=1)
    with pytest.raises(UsageError, match="is no folder here"):
        invoke("sign", s3.url, "--key", keys / "anna")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="ssh-keygen is not installed"):
        invoke("sign", signed, "--key", keys / "anna")
