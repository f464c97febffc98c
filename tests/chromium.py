"""A headless Chromium that opens a page from a file, and is asked and clicked by its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0",
)  # fmt: skip
_TIMEOUT_S = 60


class Browser:
    """One tab. `events` are all that the browser has told so far: requests, messages of the console, dialogs."""

    def __init__(self, socket_url: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._socket = _WebSocket(socket_url)
        self._numbers = itertools.count(1)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            told = json.loads(self._socket.receive())
            if told.get("id") == number:
                assert "error" not in told, told["error"]
                return cast(dict[str, Any], told["result"])
            self.events.append(told)

    def open(self, page: Path, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Open a file, and wait until its script has drawn everything."""
        self.events.clear()
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=page.as_uri())
        self.evaluate(
            """new Promise((done) => {
              const look = () => document.documentElement?.dataset.ready ? done(true) : setTimeout(look, 20);
              look();
            })"""
        )

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is."""
        told = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def picture(self, path: Path) -> Path:
        """A PNG of the whole page."""
        taken = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def printed(self, path: Path, width: float = 8.27, height: float = 11.69) -> Path:
        """A PDF of the page on paper of this size in inches; A4 unless said otherwise."""
        told = self.ask("Page.printToPDF", paperWidth=width, paperHeight=height, preferCSSPageSize=False)
        path.write_bytes(base64.b64decode(told["data"]))
        return path

    @property
    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    @property
    def complaints(self) -> list[str]:
        """What the console was told: errors, warnings, violations of the page's policy; and dialogs such as an alert."""
        found = []
        for event in self.events:
            params = event["params"]
            match event["method"]:
                case "Log.entryAdded":
                    found.append(params["entry"]["text"])
                case "Runtime.exceptionThrown":
                    found.append(params["exceptionDetails"]["text"])
                case "Runtime.consoleAPICalled":
                    found.append(" ".join(str(each.get("value")) for each in params["args"]))
                case "Page.javascriptDialogOpening":
                    found.append(f"dialog: {params['message']}")
        return found

    def close(self) -> None:
        self._socket.close()


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a new profile in an empty folder; it ends with the block."""
    assert CHROMIUM
    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "HOME": str(profile)},
    )  # fmt: skip
    try:
        assert process.stderr
        line = next(line for line in process.stderr if line.startswith("DevTools listening on "))
        browser = Browser(_tab_of(line.removeprefix("DevTools listening on ").strip()))
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        process.communicate()


def _tab_of(browser_url: str) -> str:
    """The address of the first tab's socket."""
    at = urlsplit(browser_url)
    socket = _WebSocket(browser_url)
    socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
    while (told := json.loads(socket.receive())).get("id") != 1:
        pass
    socket.close()
    target = next(each for each in told["result"]["targetInfos"] if each["type"] == "page")
    return f"ws://{at.netloc}/devtools/page/{target['targetId']}"


class _WebSocket:
    """The client's side of RFC 6455, as far as DevTools needs it: text messages, whole or in pieces."""

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        assert at.hostname and at.port
        self._socket = socket.create_connection((at.hostname, at.port), timeout=_TIMEOUT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._file = self._socket.makefile("rb")
        assert b" 101 " in self._file.readline()
        while self._file.readline() != b"\r\n":
            pass

    def send(self, text: str) -> None:
        content, mask = text.encode(), os.urandom(4)
        size = len(content)
        length = bytes([0x80 | size]) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
        if size >= 1 << 16:
            length = struct.pack("!BQ", 0x80 | 127, size)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(content))
        self._socket.sendall(b"\x81" + length + mask + masked)

    def receive(self) -> str:
        parts = b""
        while True:
            first, second = self._file.read(2)
            size = second & 0x7F
            if size > 125:
                size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
            content = self._file.read(size)
            if first & 0x0F in (0, 1):  # a text, or a further piece of it
                parts += content
                if first & 0x80:
                    return parts.decode()

    def close(self) -> None:
        self._file.close()
        self._socket.close()
