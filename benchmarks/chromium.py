"""A Chromium without a window, driven over its debugging protocol: for tests and look.py."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
LARGEST_MESSAGE = 1 << 28
SECONDS = 30.0


def find_chromium() -> str | None:
    """Return the program, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page. ``told`` has what its console said and what it could not load, ``asked`` every
    address that it asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any, session: str) -> None:
        self.loop, self.socket, self.session = loop, socket, session
        self.number = 0
        self.told: list[str] = []
        self.asked: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol; raises RuntimeError with the browser's reason."""
        return self.loop.run_until_complete(asyncio.wait_for(self._call(method, params), SECONDS))

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        await self.socket.send_json({**message, "sessionId": self.session})
        while True:
            found = await self.socket.receive_json()
            if found.get("id") == self.number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]
            self._note(found.get("method"), found.get("params", {}))

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.told.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.told.append(" ".join(str(arg.get("value", arg)) for arg in params["args"]))
        elif event == "Log.entryAdded":
            entry = params["entry"]
            self.told.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}".strip())
        elif event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def open(self, address: str) -> None:
        """Open an address and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return the value of an expression, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True,
            userGesture=True,
        )  # fmt: skip
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"].get("exception", found)))
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = SECONDS) -> None:
        """Wait until an expression is true; raises TimeoutError."""
        until = time.monotonic() + seconds
        while not self.run(f"!!({script})"):
            if time.monotonic() > until:
                raise TimeoutError(f"{script} did not become true; the console said {self.told}")
            time.sleep(0.02)

    def look(self, width: int, dark: bool = False) -> None:
        """Make the page so wide, in the light or the dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
            mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def key(self, name: str, code: int, text: str = "") -> None:
        """Press a key."""
        keys = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        typed = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **keys, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def choose(self, script: str, path: Path) -> None:
        """Choose a file in the input that an expression gives."""
        found = self.call("Runtime.evaluate", expression=script)["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path.resolve())], objectId=found)

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return int(self.run("document.documentElement.scrollWidth - innerWidth"))

    def violations(self, axe: str) -> list[str]:
        """Return what axe-core, given as its source, finds."""
        self.run(f"{axe}; undefined")
        found = json.loads(self.run("axe.run().then((r) => JSON.stringify(r.violations))"))
        return [
            f"{one['id']} ({one['impact']}): {node['html'][:160]}"
            for one in found
            for node in one["nodes"]
        ]


@contextmanager
def browser(program: str) -> Iterator[Tab]:
    """Start Chromium and yield a page of it."""
    loop = asyncio.new_event_loop()
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            found = (re.search(r"listening on (ws://\S+)", line) for line in lines)
            address = next(one.group(1) for one in found if one)
            yield from _tab(loop, address)
        finally:
            process.terminate()
            process.wait(timeout=20)
            process.stderr.close()
            loop.close()


def _tab(loop: asyncio.AbstractEventLoop, address: str) -> Iterator[Tab]:
    async def connect() -> tuple[aiohttp.ClientSession, Any, str]:
        client = aiohttp.ClientSession()
        socket = await client.ws_connect(address, max_msg_size=LARGEST_MESSAGE)

        async def ask(number: int, method: str, **params: Any) -> Any:
            await socket.send_json({"id": -number, "method": method, "params": params})
            while (found := await socket.receive_json()).get("id") != -number:
                pass
            return found["result"]

        target = (await ask(1, "Target.createTarget", url="about:blank"))["targetId"]
        session = await ask(2, "Target.attachToTarget", targetId=target, flatten=True)
        return client, socket, session["sessionId"]

    client, socket, session = loop.run_until_complete(connect())
    try:
        yield Tab(loop, socket, session)
    finally:
        loop.run_until_complete(socket.close())
        loop.run_until_complete(client.close())
