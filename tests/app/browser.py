"""A real Chromium without a window, driven over its DevTools protocol: what a reader sees, what a page asks for."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")
MESSAGES = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


def executable() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab. Remembers what was requested, and what the page complained about, since `open`."""

    def __init__(self, program: str, profile: Path):
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
        flags += ["--remote-allow-origins=*", f"--user-data-dir={profile}"]
        flags += ["--autoplay-policy=no-user-gesture-required", "--disable-background-networking"]
        flags += ["--disable-component-update", "--no-first-run", "about:blank"]
        self.process = subprocess.Popen([program, *flags], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        lines = iter(self.process.stderr.readline, "")
        port = next(line for line in lines if "DevTools listening on" in line).split("127.0.0.1:")[1].split("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            tab = next(t for t in json.load(answer) if t["type"] == "page")
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=60)
        self.count, self.requests, self.complaints = 0, list[str](), list[str]()
        self.events: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait()

    def call(self, method: str, **parameters: Any) -> Any:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == self.count:
                assert "error" not in said, said
                return said["result"]
            self._hear(said)

    def _hear(self, said: dict[str, Any]) -> None:
        self.events.append(said["method"])
        if said["method"] == "Network.requestWillBeSent":
            self.requests.append(said["params"]["request"]["url"])
        if said["method"] in MESSAGES and said["params"].get("type", "error") in ("error", "assert"):
            self.complaints.append(json.dumps(said["params"])[:400])

    def open(self, address: str, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """Load a page to its end, in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests, self.complaints, self.events = [], [], []
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + 60
        while "Page.loadEventFired" not in self.events:
            assert time.monotonic() < deadline, f"{address} did not load"
            self._hear(json.loads(self.socket.recv()))

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, expression: str, seconds: float = 30.0) -> Any:
        """Ask until the answer is true."""
        deadline = time.monotonic() + seconds
        while not (answer := self.ask(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)
        return answer

    def screenshot(self, name: str) -> bytes:
        """A PNG of the whole page, also kept where $ROBOT_CL_SCREENSHOTS says."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        picture = base64.b64decode(taken["data"])
        if folder := os.environ.get("ROBOT_CL_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.png").write_bytes(picture)
        return picture
