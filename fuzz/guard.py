"""What a parser of strangers' bytes may do: return, or raise a HildaError. Anything else ends the run with the input.

No file outside the harness's own folder is opened, no process started, no connection made, no pickle followed; an
input takes seconds at most, and no more memory than the cap.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

from hilda_schema.errors import HildaError

SECONDS = 20  # for one input, however busy the machine is
MEMORY_BYTES = 2**30  # of address space beyond what the loaded libraries take

_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "socket.bind")
_LIBRARIES = (
    *sysconfig.get_paths().values(),
    *filter(None, sys.path[1:]),
    "/proc/",
    "/dev/null",
    "/dev/urandom",
    "/sys/",
)


class Broken(BaseException):
    """A promise is broken; a BaseException, so that no parser can take it for an error of its own."""


class Guard:
    """Runs inputs and watches what they do.

    Args:
        folder: where the harness keeps its files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._watching = False
        self._thread = threading.get_ident()
        sys.addaudithook(self._on_event)
        signal.signal(signal.SIGALRM, self._on_alarm)

    def limit_memory(self) -> None:
        """Cap this process's address space; call it when everything is loaded."""
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))

    def run(self, target: Callable[[bytes], object], data: bytes) -> bool:
        """Give the parser one input; whether it was accepted.

        Raises:
            Broken, or whatever the parser raised that is no HildaError.
        """
        signal.alarm(SECONDS)
        self._watching = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target(data)
        except HildaError:
            return False
        finally:
            self._watching = False
            signal.alarm(0)
        return True

    def _on_alarm(self, number: int, frame: object) -> None:
        raise Broken(f"no answer within {SECONDS} s")

    def _on_event(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._watching or threading.get_ident() != self._thread:
            return
        if event in _FORBIDDEN:
            raise Broken(f"{event}{arguments[:2]!r}")
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100  resolve() would open it
            if not path.startswith((self._folder, *_LIBRARIES)):
                raise Broken(f"opens {path!r}, outside its folder")
