"""A Ceph cluster of one node with its S3 gateway, in memory, on loopback, for as long as a test runs.

Needs Debian's `ceph-mon`, `ceph-osd` and `radosgw` (apt-get install --no-install-recommends ceph-mon ceph-osd radosgw).
Some 600 MB of memory and half a minute.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph-authtool", "ceph")
START_S = 120

CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
public addr = 127.0.0.1
ms bind ipv6 = false
auth allow insecure global id reclaim = true
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
keyring = {folder}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 2147483648
[mon]
mon data = {folder}/mon-$id
[osd]
osd data = {folder}/osd-$id
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw enable usage log = false
"""


def missing() -> str:
    """The first program that is not installed; empty where all are."""
    return next((name for name in PROGRAMS if shutil.which(name) is None), "")


@contextmanager
def gateway(folder: Path, key: str, secret: str) -> Iterator[str]:
    """Start it; the address of the gateway. `folder` should have a short path: sockets lie in it."""
    v1, v2, port = (_free_port() for _ in range(3))
    conf = folder / "ceph.conf"
    conf.write_text(CONF.format(fsid=uuid.uuid4(), folder=folder, v1=v1, v2=v2, port=port))
    running: list[subprocess.Popen[bytes]] = []

    def run(*words: object) -> None:
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=START_S, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"

    def start(*words: object) -> None:
        with (folder / f"{words[0]}.out").open("wb") as out:
            running.append(subprocess.Popen(list(map(str, words)), stdout=out, stderr=out))

    try:
        everything = [word for each in ("mon", "osd") for word in ("--cap", each, "allow *")]
        for number, name in enumerate(("mon.", "client.admin", "client.rgw", "osd.0")):
            new = [] if number else ["--create-keyring"]
            run("ceph-authtool", *new, folder / "keyring", "--gen-key", "-n", name, *everything)
        fsid = conf.read_text().split("fsid = ")[1].split()[0]
        addresses = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        run("monmaptool", "--create", "--addv", "a", addresses, "--fsid", fsid, folder / "monmap")
        run("ceph-mon", "-c", conf, "-i", "a", "--mkfs", "--monmap", folder / "monmap", "--keyring", folder / "keyring")
        start("ceph-mon", "-c", conf, "-i", "a", "-f")
        osd = str(uuid.uuid4())
        run("ceph", "-c", conf, "--connect-timeout", "60", "osd", "new", osd)
        (folder / "osd-0").mkdir()
        run("ceph-osd", "-c", conf, "-i", "0", "--mkfs", "--osd-uuid", osd)
        start("ceph-osd", "-c", conf, "-i", "0", "-f")
        user = [
            "user",
            "create",
            "--uid",
            "test",
            "--display-name",
            "test",
            "--access-key",
            key,
            "--secret-key",
            secret,
        ]
        run("radosgw-admin", "-c", conf, "-n", "client.rgw", *user)
        start("radosgw", "-c", conf, "-n", "client.rgw", "-f")
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in reversed(running):
            process.kill()
        for process in running:
            process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(f"the gateway does not listen after {START_S} s")


if __name__ == "__main__":
    here = Path(os.environ.get("TMPDIR", "/tmp"), f"ceph-{os.getpid()}")
    here.mkdir()
    with gateway(here, "KEY", "SECRET") as address:
        print(address)
        input("Enter ends it. ")
