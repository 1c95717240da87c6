"""Screenshots of the MLflow UI for the docs: `python -m tests.end_to_end.screenshots URI MODEL RUN...`.

URI is a running MLflow server's, MODEL the recommender's name, and each RUN the id of a training. It needs `chromium`,
which it drives over the DevTools protocol.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from websockets.sync.client import ClientConnection, connect

from pipelines import saved_view

DOCS = Path(__file__).resolve().parents[2] / "docs" / "images"
SIZE = (1500, 1050)
_WITHOUT_ASSISTANT = (
    "try { localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
    " localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true') } catch {}"
)
"""The UI opens a panel beside every page on a first visit."""
_UNFOLD = """
for (const button of document.querySelectorAll('button')) if (button.innerText == 'Show more') button.click();
for (const box of document.querySelectorAll('button[role=switch]')) if (location.hash.includes('compare')) box.click();
"""
_DEADLINE_SECONDS = 120.0
_CALM_SECONDS = 4.0
"""How long pages may still move after their text is there: charts are drawn late."""


class Browser:
    """A page of headless Chromium."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._calls = socket, 0
        self.call("Page.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=_WITHOUT_ASSISTANT)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol; events are passed over."""
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv(timeout=_DEADLINE_SECONDS))).get("id") != self._calls:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def value(self, script: str) -> Any:
        """What JavaScript says."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def open(self, address: str, expected: str, size: tuple[int, int] = SIZE) -> None:
        """Go to a page, and wait until it shows a text."""
        shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **shape)
        self.call("Page.navigate", url="about:blank")  # or a change after the # alone would not load a page
        self.call("Page.navigate", url=address)
        until = time.monotonic() + _DEADLINE_SECONDS
        while expected not in (self.value("document.body ? document.body.innerText : ''") or ""):
            assert time.monotonic() < until, f"{address}: never shows {expected!r}"
            time.sleep(0.25)
        time.sleep(_CALM_SECONDS)

    def save(self, path: Path) -> None:
        """What is seen, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        print(path)


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, ended afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += ["--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                with connect(_page_of(Path(profile) / "DevToolsActivePort"), max_size=None) as socket:
                    yield Browser(socket)
            finally:
                process.terminate()


def _page_of(port_file: Path) -> str:
    """The address of the only page's socket."""
    until = time.monotonic() + _DEADLINE_SECONDS
    while not port_file.exists() or not port_file.read_text(encoding="utf-8").strip():
        assert time.monotonic() < until, "chromium did not start"
        time.sleep(0.1)
    port = int(port_file.read_text(encoding="utf-8").splitlines()[0])
    listed = subprocess.run(
        ["curl", "--silent", f"http://127.0.0.1:{port}/json/list"], capture_output=True, check=True, timeout=30
    )
    return next(str(page["webSocketDebuggerUrl"]) for page in json.loads(listed.stdout) if page["type"] == "page")


def take(uri: str, model: str, experiment: str, runs: list[str], version: str, picture: str, folder: Path) -> None:
    """The table of runs, two comparisons, a run's page and pictures, the model and a version of it."""
    folder.mkdir(parents=True, exist_ok=True)
    first, home = runs[0], f"{uri}/"
    several = urlencode({"runs": json.dumps(runs), "experiments": json.dumps([experiment])})
    run = f"{home}#/experiments/{experiment}/runs/{first}"
    pages = {
        "mlflow_runs": (home + saved_view.address(experiment), "Run Name", SIZE),
        "mlflow_compare": (f"{home}#/compare-runs?{several}", "Parameters", (SIZE[0], 1400)),
        "mlflow_run": (run, "Description", (SIZE[0], 1700)),
        "mlflow_picture": (f"{run}/artifacts/pictures/{picture}.png", f"{picture}.png", SIZE),
        "mlflow_model": (f"{home}#/models/{model}", "Version", SIZE),
        "mlflow_version": (f"{home}#/models/{model}/versions/{version}", "Description", SIZE),
    }
    with browser() as page:
        for name, (address, expected, size) in pages.items():
            page.open(address, expected, size)
            page.value(_UNFOLD)
            time.sleep(_CALM_SECONDS)
            page.save(folder / f"{name}.png")


def main() -> None:
    """Read the arguments and take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri", help="of a running MLflow server")
    parser.add_argument("model", help="name of the recommender")
    parser.add_argument("runs", nargs="+", help="ids of trainings, the first one is opened")
    parser.add_argument("--experiment", default="1")
    parser.add_argument("--version", default="1")
    parser.add_argument("--picture", default="calibration", help="of the first run, the one that is opened")
    parser.add_argument("--to", type=Path, default=DOCS)
    given = parser.parse_args()
    take(given.uri.rstrip("/"), given.model, given.experiment, given.runs, given.version, given.picture, given.to)


if __name__ == "__main__":
    main()
