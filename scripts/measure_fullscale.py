"""A full-scale run through the page, as a person starts it: time, and the most memory of worker and page.

python -m scripts.measure_fullscale --edits 1000 --iterations 5
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pandas as pd
from playwright.sync_api import Page, expect, sync_playwright

from editing_core.bench.executors import folders
from scripts.results_page import FULLSCALE, SHOWN, write
from scripts.screenshot import ARGUMENTS

PORT = 7899
HOURS = 3_600_000  # ms
POLL = 200  # ms: looking at every frame would take processor time from the run


def peak(pid: int) -> float:
    """Most MB a process has had so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    assert found
    return int(found.group(1)) / 1024


def reach(url: str) -> None:
    """Wait for the page to answer."""
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (URLError, ConnectionError):
            time.sleep(0.5)


def start(sheet: Page, edits: int, iterations: int) -> float:
    """Fill in the form and press Start; gives the time when it was pressed."""
    sheet.get_by_role("tab", name="Benchmark", exact=True).click()
    sheet.locator("#bench-dataset input").click()
    sheet.get_by_role("option", name="Pocket facts, all").click()
    for name, value in (("limit", edits), ("iterations", iterations)):
        box = sheet.locator(f"#bench-{name} input[type=number]")
        box.fill(str(value))
        box.press("Tab")
    sheet.get_by_text("Stop rule, protocol").click()
    sheet.locator("#bench-settings textarea").press_sequentially("[common]\nstop = 'none'")
    sheet.wait_for_timeout(1000)
    sheet.locator("#bench-start").click()
    return time.perf_counter()


def follow(url: str, edits: int, iterations: int, picture: str) -> float:
    """Seconds from Start until the last iteration is drawn."""
    with sync_playwright() as play:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = play.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        sheet = browser.new_page(viewport={"width": 1440, "height": 900})
        sheet.goto(url)
        sheet.locator("#edit").wait_for()
        pressed = start(sheet, edits, iterations)
        drawn = f"document.querySelector('#plot-bench-left .js-plotly-plot')?.data?.[0]?.y?.length === {iterations + 1}"
        sheet.wait_for_function(drawn, polling=POLL, timeout=HOURS)
        expect(sheet.locator("#bench-queue .es-run-done")).to_have_count(1, timeout=HOURS)
        seconds = time.perf_counter() - pressed
        if picture:
            sheet.wait_for_timeout(1000)
            sheet.screenshot(path=picture)
        browser.close()
    return seconds


def keep(head: dict[str, Any], rows: pd.DataFrame, seconds: float, page: float) -> None:
    """Write the figures down. seconds: from Start to the last point drawn. page: most MB of its process."""
    shown = rows.reindex(columns=["k", *SHOWN]).astype(object).where(rows.notna(), None)
    found = {
        "edits": head["result"]["n_edits"],
        "iterations": int(rows["k"].max()),
        "seconds": round(seconds),
        "run_seconds": round(head["result"]["seconds"]),
        "edit_seconds": round(head["result"]["edit_seconds"]),
        "worker_mb": round(head["memory"] / 2**20),
        "page_mb": round(page),
        "rows": shown.to_dict("records"),
    }
    FULLSCALE.write_text(json.dumps(found, indent=1), encoding="utf-8")
    write()


def main() -> None:
    """Serve a page on a folder of its own, do one run through it, and write down what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--picture", default="", metavar="FILE", help="also keep a picture of the page at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "GRADIO_SERVER_PORT": str(PORT)}
        page = subprocess.Popen([sys.executable, "app.py", "--root", place], env=environment)
        try:
            url = f"http://127.0.0.1:{PORT}"
            reach(url)
            seconds = follow(url, options.edits, options.iterations, options.picture)
            (folder,) = folders(Path(place))
            keep(folder.head(), pd.read_csv(folder.path / "iterations.csv"), seconds, peak(page.pid))
        finally:
            page.terminate()
            page.wait()


if __name__ == "__main__":
    main()
