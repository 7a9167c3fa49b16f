"""Who vouches for a store's content: a detached signature of its root hash, by OpenSSH's own keys and tools.

    sign_root(store, key)                       # writes root.sig; what `ssh-keygen -Y sign -n hilda-cache` writes
    signer_of(cache, signature, signers)        # who signed it, of a file as `ssh-keygen -Y verify -f` takes it

Keys, agents, hardware tokens, and the file that says whose key is trusted (`man ssh-keygen`, ALLOWED SIGNERS) are the
ones that people sign git commits with. A signature says nothing but that its key's holder signed this content hash: it
can lie anywhere, and is as good from the bucket that holds the store as from elsewhere.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from hilda_schema.durable import replace_file, write_atomically, writing
from hilda_schema.errors import CacheCorrupt, CacheIncomplete, CacheNotFound, UsageError
from hilda_schema.reader import Cache
from hilda_schema.root import SIGNATURE, SIGNATURE_LIMIT
from hilda_schema.storage import open_storage

NAMESPACE = "hilda-cache"
"""So that no signature of another purpose passes for one of a store."""

PROGRAM = "ssh-keygen"


def statement(root_sha256: str) -> bytes:
    """What is signed: one line."""
    return f"sha256:{root_sha256}\n".encode()


def sign_root(cache: Cache, key: Path, out: Path | None) -> Path:
    """Sign a store's root hash.

    Args:
        cache: the store, complete.
        key: a private key, or a public one whose private key an agent holds.
        out: where the signature goes; None: into the store's folder.

    Returns:
        The signature's file.

    Raises:
        UsageError: the store is not in a folder here and `out` is not given, the key cannot be used, or there is no
            OpenSSH.
        CacheIncomplete: the store has no content hash yet.
        CacheError: the file cannot be written.
    """
    root = cache.manifest.root_sha256
    if not root:
        raise CacheIncomplete(f"{cache.url} is not complete, so it has no content hash to sign", "finish it first")
    if out is None and "://" in cache.url:
        raise UsageError(f"{cache.url} is no folder here", "say with --out where the signature goes")
    if not key.is_file():
        raise UsageError(f"{key} is no key", "give a key of ssh-keygen, e.g. ~/.ssh/id_ed25519")
    done = _run(["-Y", "sign", "-q", "-n", NAMESPACE, "-f", str(key)], statement(root))
    if done.returncode:
        raise UsageError(f"{key} did not sign: {_said(done)}")
    if out is None:
        replace_file(Path(cache.url), SIGNATURE, done.stdout)
        return Path(cache.url, SIGNATURE)
    with writing(out):
        write_atomically(out, done.stdout)
    return out


def read_signature(store: str, signature: str | None) -> bytes:
    """A signature: the one that lies in a store, or a file.

    Raises:
        CacheNotFound: there is none.
        CacheError: it cannot be read.
    """
    if signature is None:
        folder, name = store, SIGNATURE
    elif "://" in signature:
        folder, name = signature.rsplit("/", 1)
    else:
        folder, name = str(Path(signature).parent), Path(signature).name
    try:
        return open_storage(folder).read(name, SIGNATURE_LIMIT)
    except FileNotFoundError:
        where = signature or f"{open_storage(store).name}/{SIGNATURE}"
        raise CacheNotFound(f"there is no signature at {where}", "name its file with --signature") from None


def signer_of(root_sha256: str, signature: bytes, signers: Path) -> str:
    """Who signed a content.

    Args:
        root_sha256: the content.
        signature: what `sign_root` writes.
        signers: OpenSSH's file of allowed signers: a line each of name, key type and public key.

    Returns:
        The name in that file.

    Raises:
        UsageError: the file of signers cannot be read, or there is no OpenSSH.
        CacheCorrupt: none of them signed this content.
    """
    if not signers.is_file():
        raise UsageError(f"{signers} is no file", "write a line `NAME ssh-ed25519 AAAA...` for each signer you trust")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, SIGNATURE)
        file.write_bytes(signature)
        about = ["-s", str(file), "-f", str(signers)]
        found = _run(["-Y", "find-principals", *about], b"")
        if found.returncode:
            raise CacheCorrupt(f"nobody in {signers} made this signature", "ask whoever published the store for theirs")
        for name in found.stdout.decode(errors="replace").replace(",", "\n").splitlines():
            done = _run(["-Y", "verify", *about, "-I", name, "-n", NAMESPACE], statement(root_sha256))
            if done.returncode == 0:
                return name
    raise CacheCorrupt(
        f"the signature is not of this content, sha256:{root_sha256}",
        "the store changed after it was signed, or the signature is of another one",
    )


def _run(words: list[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run([PROGRAM, *words], input=data, capture_output=True, check=False)
    except FileNotFoundError:
        raise UsageError(f"{PROGRAM} is not installed", "install OpenSSH's client (8.1 or newer)") from None


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else f"{PROGRAM} ended with {done.returncode}"
