"""A headless Chromium, spoken to through a pipe by its DevTools protocol: what a page does when it is really opened."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
HEARD = ("Page", "Runtime", "Log", "Network")


@dataclass
class Visit:
    """A page that is open."""

    browser: Browser
    session: str
    requests: list[str] = field(default_factory=list)  # addresses asked for, but those that lie in the page itself
    complaints: list[dict[str, Any]] = field(default_factory=list)  # exceptions, messages and refusals in the console

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        done = self.browser.call("Runtime.evaluate", self.session, expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as a PNG file."""
        shot = self.browser.call("Page.captureScreenshot", self.session, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


class Browser:
    """One browser; its profile is new and empty."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The protocol runs over file descriptors 3 and 4; a shell puts ours there whatever numbers they have.
        plumbing = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", plumbing, "bash", program, *QUIET, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._waiting = itertools.count(1), b""
        self._events: list[dict[str, Any]] = []

    def open(self, path: Path, width: int, *, less_motion: bool = False) -> Visit:
        """Open a file in a window of a width in CSS pixels, and wait until it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in HEARD:
            self.call(f"{domain}.enable", session)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if less_motion else "no-preference"}
        self.call("Emulation.setEmulatedMedia", session, features=[motion])
        self._events.clear()
        self.call("Page.navigate", session, url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        visit = Visit(self, session)
        visit.evaluate("0")  # whatever was said until now has been heard
        for event in self._events:
            if event["method"] == "Network.requestWillBeSent":
                visit.requests.append(event["params"]["request"]["url"])
            if event["method"] in {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}:
                visit.complaints.append(event["params"])
        visit.requests = [url for url in visit.requests if not url.startswith("data:")]
        return visit

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; what is told meanwhile is kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while (answer := self._read()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            heard = os.read(self._in, 1 << 16)
            assert heard, "the browser has gone"
            self._waiting += heard
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        """End it."""
        self.call("Browser.close")
        self._process.wait(timeout=60)
        os.close(self._in)
        os.close(self._out)
