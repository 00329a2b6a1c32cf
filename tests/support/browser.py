"""A real browser without a window, spoken to over a pipe in the DevTools protocol: no package, no port.

Reference: https://chromedevtools.github.io/devtools-protocol/. `with browser.open(path) as tab:` opens a page and ends
by checking that nothing went wrong in it: no error in the console, and no request but for the page itself.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
)
PATIENCE_SEC = 60
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Enter": 13, " ": 32}


def find() -> str | None:
    """The path of a browser of Chromium's family, if one is installed and can be given pipes."""
    if os.name != "posix":
        return None
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A running browser; `close` ends it and removes what it wrote."""

    def __init__(self, executable: str) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        hears, self._out = os.pipe()
        self._in, says = os.pipe()
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        # the browser reads file descriptor 3 and writes 4, whatever the numbers are here
        moved = f'exec "$@" 3<&{hears} 4>&{says}'
        words = [executable, *FLAGS, *root, f"--user-data-dir={self._folder.name}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(["bash", "-c", moved, "bash", *words], pass_fds=(hears, says), **quiet)
        os.close(hears)
        os.close(says)
        self._buffer, self._count = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Ask for something and wait for the answer; events that come before it are kept in `events`."""
        self._count += 1
        request = {"id": self._count, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(request).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._count:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    def wait(self, method: str, session: str) -> None:
        """Wait for an event."""
        while not any(e.get("method") == method and e.get("sessionId") == session for e in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_SEC
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, until - time.monotonic()))
            piece = os.read(self._in, 1 << 20) if ready else b""
            assert piece, "the browser ended" if ready else "the browser does not answer"
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(line))

    @contextlib.contextmanager
    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator["Tab"]:
        """Open a file in a tab that remembers nothing of others; a `width` under 600 is a phone, which is touched.

        Raises:
            AssertionError: at the end, if the page reported an error or asked for anything but itself.
        """
        self.events.clear()
        profile = self.call("Target.createBrowserContext")["browserContextId"]  # storage of its own, as in a new window
        target = self.call("Target.createTarget", url="about:blank", browserContextId=profile)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, width, height)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        phone = width < 600
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        tab.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        url = path.resolve().as_uri()
        tab.call("Page.navigate", url=url)
        self.wait("Page.loadEventFired", session)
        try:
            yield tab
            tab.js("1")  # what was reported until now has come
            assert tab.errors() == []
            assert [address for address in tab.requests() if address != url and not address.startswith("data:")] == []
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=profile)  # and its tab

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        self._process.wait(PATIENCE_SEC)
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()


class Tab:
    """An open page."""

    def __init__(self, browser: Browser, session: str, width: int, height: int) -> None:
        self._browser, self._session = browser, session
        self.width, self.height = width, height

    def call(self, method: str, **params: Any) -> Any:
        return self._browser.call(method, self._session, **params)

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON can say it."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """The text that an element shows."""
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def press(self, key: str) -> None:
        """Press and release a key, `ArrowLeft` or `a`."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element, scrolled into view, in pixels of the screen."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{element}.scrollIntoView({{block: 'center'}})")
        left, top, width, height = self.js(f"(r => [r.x, r.y, r.width, r.height])({element}.getBoundingClientRect())")
        return left + width / 2, top + height / 2

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str) -> None:
        """Touch the middle of an element with a finger, and wait for the click that comes of it; for phones."""
        x, y = self.middle(selector)
        self.js(
            "addEventListener('click', () => setTimeout(() => { window.tapped = true; }), {once: true, capture: true})"
        )
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        until = time.monotonic() + PATIENCE_SEC
        while not self.js("window.tapped"):
            assert time.monotonic() < until, f"a touch of {selector} is no click"
        self.js("window.tapped = false")

    def overflow(self) -> int:
        """By how many pixels the page is wider than the screen: a page for a phone has none."""
        return int(self.js("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        if whole:
            height = int(self.js("document.documentElement.scrollHeight"))
            clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
            shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        else:
            shot = self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(shot["data"]))

    def errors(self) -> list[str]:
        """What went wrong in the page so far: exceptions, `console.error`, what the browser itself logged."""
        found = []
        for event in self._mine():
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(json.dumps(params["entry"]))
        return found

    def requests(self) -> list[str]:
        """The address of everything that the page asked for, itself included."""
        return [e["params"]["request"]["url"] for e in self._mine() if e["method"] == "Network.requestWillBeSent"]

    def _mine(self) -> list[dict[str, Any]]:
        return [event for event in self._browser.events if event.get("sessionId") == self._session]
