"""A headless Chromium for tests of pages: real keys and pointers, pictures at any width.

    with Browser() as browser:
        browser.open(path, width=390, dark=True)
        browser.press("Tab")
        browser.run("document.title")
        browser.picture(Path("page.png"))

It speaks the DevTools protocol over two pipes (--remote-debugging-pipe: JSON, each message ended by
a zero byte), so that nothing has to be installed beside Debian's `chromium`.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-pipe", "--hide-scrollbars=false", "about:blank"),
)
KEYS = {  # name: (code, number, text)
    **{"Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), " ": ("Space", 32, " ")},
    **{"ArrowDown": ("ArrowDown", 40, ""), "ArrowUp": ("ArrowUp", 38, "")},
    **{"Home": ("Home", 36, ""), "End": ("End", 35, "")},
}


class Browser:
    def __enter__(self) -> "Browser":
        program = shutil.which("chromium")
        assert program, "chromium is not installed (apt-get install chromium)"
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def as_three_and_four() -> None:
            a, b = os.dup(to_read), os.dup(to_write)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [program, f"--user-data-dir={self.folder.name}", *QUIET],
            preexec_fn=as_three_and_four,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._rest, self.session = 0, b"", None
        self.said: list[str] = []  # errors and warnings of the page
        self.asked: list[str] = []  # addresses that it asked for
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._write)
        os.close(self._read)
        self.folder.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 20)
            assert more, "chromium has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        facts = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.said.append(details.get("exception", {}).get("description") or details["text"])
        elif message.get("method") == "Log.entryAdded":
            self.said.append(facts["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            self.asked.append(facts["request"]["url"])
        return message

    def open(
        self, page: Path | str, width: int = 1400, height: int = 900, dark: bool = False
    ) -> None:
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        loaded = f"document.readyState === 'complete' && location.href === {json.dumps(address)}"
        end = time.time() + 60
        while not self.run(loaded):
            assert time.time() < end, f"{page} does not load"
            time.sleep(0.05)
        self.settle()

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True,
                          awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def settle(self) -> None:
        """Until what was asked for has been drawn."""
        frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.run(f"{frame}.then(() => 0)")

    def press(self, key: str) -> None:
        code, number, text = KEYS[key]
        facts = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        down = {"type": "keyDown" if text else "rawKeyDown"} | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", **facts, **down)
        self.call("Input.dispatchKeyEvent", **facts, type="keyUp")
        self.settle()

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)
        self.settle()

    def click(self, selector: str) -> None:
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1],
                      button="left", clickCount=1)  # fmt: skip
        self.settle()

    def picture(self, file: Path, whole: bool = True) -> None:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))
