"""A real browser without a screen: opens a page, waits in real time until it shows what it should, takes its picture.

Chromium's own switches for that (--dump-dom, --screenshot) let its clock run ahead, and what another thread draws is
then often missing. So it is spoken to over a pipe, in its DevTools protocol: JSON, each message ended by a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium")
# Curves are drawn by WebGL, here without a GPU. Its own cage wants a user that is not root.
OPTIONS = ("--headless", "--no-first-run", "--enable-unsafe-swiftshader", "--remote-debugging-pipe")


def pipe() -> list[int]:
    """A pipe whose ends are not among the first few descriptors, which chromium wants for its own."""
    ends = os.pipe()
    above = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return above


class Browser:
    """One page of a browser of its own; `problems` are the exceptions of the page's programs."""

    def __init__(self, profile: Path, width: int = 1400, height: int = 900):
        down, ours_up = pipe()
        up, ours_down = pipe()
        cage = ["--no-sandbox"] if os.getuid() == 0 else []
        command = [CHROMIUM, *OPTIONS, *cage, f"--window-size={width},{height}", f"--user-data-dir={profile}"]
        # As it wants them: it reads from 3 and writes to 4.
        redirected = ["bash", "-c", f'exec "$@" 3<&{down} 4>&{ours_down}', "bash", *command, "about:blank"]
        self.process = subprocess.Popen(
            redirected, pass_fds=(down, ours_down), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(down)
        os.close(ours_down)
        self._to, self._from = os.fdopen(ours_up, "wb"), os.fdopen(up, "rb")
        self._count, self._session, self.problems = 0, None, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Runtime.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(answer["params"]["exceptionDetails"])[:500])
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> bytes:
        text = bytearray()
        while (one := self._from.read(1)) != b"\0":
            assert one, "the browser has ended"
            text += one
        return bytes(text)

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> Any:
        """The value of the expression as soon as it is true."""
        patience = time.monotonic() + seconds
        while not (value := self.value(expression)):
            assert time.monotonic() < patience, f"after {seconds} s there is still no {expression}"
            time.sleep(0.2)
        return value

    def picture(self, file: Path) -> None:
        """What it shows, as PNG."""
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._to.close()
        self._from.close()
