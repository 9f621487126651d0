"""A real browser for the tests: Chromium, driven through its own debugging pipe."""

import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser():
    given = os.environ.get("METATOOLKIT_BROWSER")
    found = [shutil.which(name) for name in ([given] if given else NAMES)]
    return next((path for path in found if path), None)


class Browser:
    """A page in a headless browser; notes errors and everything that it asks the network for.

    Args:
        program: The browser.
        profile: A folder of its own.
    """

    def __init__(self, program, profile):
        to_browser, self._write = (fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in os.pipe())
        self._read, from_browser = (fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in os.pipe())

        def connect():
            os.dup2(to_browser, 3)
            os.dup2(from_browser, 4)

        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-extensions", "--remote-debugging-pipe",
            f"--user-data-dir={profile}", "--window-size=1200,1600", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [program, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            pass_fds=(3, 4),
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._numbers = itertools.count(1)
        self._session = None
        self.errors = []
        self.requests = []
        self.dialogs = []
        target = self._ask("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in target if one["type"] == "page")
        attached = self._ask("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self._process.kill()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    def open(self, path):
        self._ask("Page.navigate", url=f"file://{path}")
        deadline = time.monotonic() + 120
        while self.evaluate("document.readyState") != "complete":
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def evaluate(self, expression):
        answer = self._ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def resize(self, width, height):
        """Show the page as a phone of this size does."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=True,
        )  # fmt: skip

    def screenshot(self):
        import base64

        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])

    def _ask(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _note(self, method, details):
        if method == "Runtime.exceptionThrown":
            self.errors.append(details["exceptionDetails"])
        elif method == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(details["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(details["message"])

    def _next(self):
        deadline = time.monotonic() + 120
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            block = os.read(self._read, 1 << 20) if ready else b""
            assert block, "the browser does not answer"
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
