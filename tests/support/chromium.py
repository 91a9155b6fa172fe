"""Headless Chromium over its DevTools protocol: real clicks, real keys, and what went wrong."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import ClientSession, ClientWebSocketResponse, ClientWSTimeout, WSMsgType

from tests.support.polling import eventually

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
# A cold start on a busy machine takes seconds.
_PATIENCE = 60.0


def find_chromium() -> str | None:
    """Return the browser's path, or ``None`` where this machine has none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Chromium:
    """A browser with a new profile and one page.

    ``requests`` are pairs of a page's URL and one that it asks for, or would where no policy
    forbade it. ``complaints`` are what the console says, each after the URL of its page: blocked by
    a policy, not found, thrown by a script.
    """

    def __init__(self, executable: str) -> None:
        self.requests: list[tuple[str, str]] = []
        self.complaints: list[str] = []
        self._page = ""
        self._executable = executable
        self._stack = AsyncExitStack()
        self._socket: ClientWebSocketResponse | None = None
        self._numbers = count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            profile = Path(
                stack.enter_context(
                    # Its processes may still write while the directory is removed.
                    tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
                )
            )
            process = await asyncio.create_subprocess_exec(
                self._executable,
                *_FLAGS,
                f"--user-data-dir={profile}",
                "about:blank",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.push_async_callback(_ended, process)
            session = await stack.enter_async_context(ClientSession())
            url = await _page_url(session, profile / "DevToolsActivePort")
            self._socket = await stack.enter_async_context(
                session.ws_connect(url, max_msg_size=0, timeout=ClientWSTimeout(ws_close=1))
            )
            reader = asyncio.create_task(self._read(self._socket))
            stack.push_async_callback(asyncio.wait, [reader])
            stack.callback(reader.cancel)
            stack.push_async_callback(self.command, "Browser.close")
            for domain in ("Page", "Runtime", "Network", "Log"):
                await self.command(f"{domain}.enable")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def command(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        if self._socket is None:
            raise AssertionError("not started")
        number = next(self._numbers)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_str(orjson.dumps(message).decode())
        async with asyncio.timeout(_PATIENCE):
            return await reply

    async def open(self, url: str) -> None:
        """Go to a URL as if it had been typed."""
        await self.command("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """Return a JavaScript expression's value; ``None`` while the page is changing."""
        result = await self.command("Runtime.evaluate", expression=expression, returnByValue=True)
        return result.get("result", {}).get("value")

    async def text(self) -> str:
        """Return what the page says to a reader."""
        return str(await self.evaluate("document.body ? document.body.innerText : ''"))

    async def url(self) -> str:
        """Return where the browser is."""
        return str(await self.evaluate("location.href"))

    async def until_text(self, words: str) -> str:
        """Wait until the whole page is there and says ``words``; return all of its text."""

        async def look() -> str | None:
            loaded = await self.evaluate("document.readyState") == "complete"
            text = await self.text()
            return text if loaded and words in text else None

        return await eventually(look, within=_PATIENCE, what=f"a page that says {words!r}")

    async def click(self, selector: str) -> None:
        """Press the mouse button in the middle of an element."""
        await eventually(lambda: self._press(selector), within=_PATIENCE, what=f"a {selector}")

    async def type(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        await self.click(selector)
        await self.command("Input.insertText", text=text)

    async def screenshot(self, path: Path) -> None:
        """Save what the window shows."""
        result = await self.command("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(result["data"]))

    async def resize(self, width: int, height: int, **more: object) -> None:
        """Give the window another size; ``mobile=True`` for a telephone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.command("Emulation.setDeviceMetricsOverride", **{**size, **more})

    async def prefer(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark`` pages."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.command("Emulation.setEmulatedMedia", features=[feature])

    async def _press(self, selector: str) -> bool:
        # Not before styles are there, which move things, nor where something else lies above.
        middle = await self.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r});"
            " if (!e || document.readyState !== 'complete') return null;"
            " e.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const r = e.getBoundingClientRect();"
            " const [x, y] = [r.x + r.width / 2, r.y + r.height / 2];"
            " return e.contains(document.elementFromPoint(x, y)) ? [x, y] : null; })()"
        )
        if middle is None:
            return False
        for kind in ("mousePressed", "mouseReleased"):
            await self.command(
                "Input.dispatchMouseEvent",
                type=kind,
                x=middle[0],
                y=middle[1],
                button="left",
                clickCount=1,
            )
        return True

    async def _read(self, socket: ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            said = orjson.loads(message.data)
            reply = self._replies.pop(said.get("id", 0), None)
            if reply is not None:
                reply.set_result(said.get("result", {}))
            else:
                self._note(said.get("method", ""), said.get("params", {}))
        # A browser that is closing may owe an answer.
        for owed in self._replies.values():
            owed.set_result({})

    def _note(self, event: str, members: Mapping[str, Any]) -> None:
        match event:
            case "Network.requestWillBeSent":
                self.requests.append((members["documentURL"], members["request"]["url"]))
            case "Page.frameNavigated" if "parentId" not in members["frame"]:
                self._page = members["frame"]["url"]
            case "Log.entryAdded":
                self.complaints.append(f"{self._page}: {members['entry']['text']}")
            case "Runtime.exceptionThrown":
                self.complaints.append(f"{self._page}: {members['exceptionDetails']['text']}")


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for the browser's own end, in which its helpers end too; then help."""
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _page_url(session: ClientSession, port_file: Path) -> str:
    """Return the WebSocket URL of the browser's one page, once it listens."""

    async def look() -> str | None:
        port = _first_line(port_file)
        if port is None:
            return None
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = await answer.json()
        return next(
            (page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"), None
        )

    return await eventually(look, within=_PATIENCE, what="the browser's start")


def _first_line(file: Path) -> str | None:
    """Return the first line of a file that may not be there, or not be whole, yet."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return lines[0].strip() if lines and lines[0].endswith("\n") else None
