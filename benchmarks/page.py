"""How long a person waits for the page: until it can be used, and from a click to the last chart.

    python -m benchmarks.page        headless Chromium and the page share the machine, as they do on a laptop

The edit is one fact with MEMIT and five iterations, no rule that stops it before. Charts count as drawn when the
verdict is there and the last figure shows the traces of the new run.
"""

import shutil
import subprocess
import sys
import time
import urllib.request
from statistics import median

from playwright.sync_api import Page, sync_playwright

from scripts.screenshot import ARGUMENTS, free_port

TIMES = 6
ITERATIONS = 5
LOOK = 50  # milliseconds; looking at every frame takes processor time from the edit
# Those that differ between any two runs; a chart that stays the same is not drawn again.
CHARTS = (
    "['probabilities', 'perplexity', 'drift', 'loss'].map(n => document.querySelector(`#plot-${n} .js-plotly-plot`))"
)


def started(port: int) -> tuple["subprocess.Popen[bytes]", float]:
    """The app in a process of its own, and seconds until it answers."""
    code = f"import os; os.environ['GRADIO_SERVER_PORT'] = '{port}'; import app; app.main()"
    begun = time.perf_counter()
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).read()
            return running, time.perf_counter() - begun
        except OSError:
            if running.poll() is not None:
                raise SystemExit("The page did not start; its error stands above.") from None
            time.sleep(0.05)


def assembly() -> float:
    """Seconds from a loaded model to a page that answers, in a process where everything is imported."""
    code = (
        "import time, app; from editing_core.models.host import ModelHost; "
        "from editing_core.statistics.covariance import CovarianceStore; host = ModelHost(); "
        "app.warm(host, CovarianceStore()); t = time.perf_counter(); parts = app.assemble(host); "
        f"parts.page.launch(prevent_thread_lock=True, quiet=True, server_port={free_port()}, **app.LAUNCH); "
        "print(time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def usable(page: Page, url: str) -> float:
    """Seconds from going there until Edit can be pressed."""
    begun = time.perf_counter()
    page.goto(url)
    page.locator("button#edit:not([disabled])").wait_for()
    return time.perf_counter() - begun


def prepare(page: Page) -> None:
    """One fact, MEMIT, five iterations, nothing that stops it."""
    page.locator("#example-0").click()
    page.locator("#strip .es-token-edited").wait_for()
    page.locator("#iterations input[type=number]").fill(str(ITERATIONS))
    page.locator("#iterations input[type=number]").press("Tab")
    page.get_by_text("Stop rule, assistance, seed").click()
    page.locator("#stop-rule label", has_text="none").click()


def edit(page: Page, seed: int) -> float:
    """Seconds from the click until the run is told as done and the charts are drawn anew.

    seed: another one each time.
    """
    page.locator("#seed input").fill(str(seed))
    page.locator("#seed input").press("Tab")
    page.wait_for_timeout(1000)
    page.evaluate(f"() => {{ window.before = {CHARTS}.map(chart => chart._fullLayout); }}")
    begun = time.perf_counter()
    page.locator("#edit").click()
    done = "document.querySelector('#progress').innerText.includes('Done')"
    page.wait_for_function(f"() => !{done}", polling=LOOK)
    page.wait_for_function(f"() => {done}", polling=LOOK, timeout=120_000)
    page.wait_for_function(f"() => {CHARTS}.every(chart => !window.before.includes(chart._fullLayout))", polling=LOOK)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return time.perf_counter() - begun


def main() -> None:
    """Print all of it."""
    port = free_port()
    print(f"from a loaded model to a page that answers: {median(assembly() for _ in range(3)):.2f} s")
    running, seconds = started(port)
    print(f"from `python app.py` to a page that answers: {seconds:.1f} s")
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            visits = [usable(page, f"http://127.0.0.1:{port}/") for _ in range(3)]
            print(f"from going there to a page that can be used: {visits[0]:.2f} s, again {median(visits[1:]):.2f} s")
            prepare(page)
            waits = [edit(page, seed) for seed in range(TIMES)]
            told = ", ".join(f"{wait:.2f}" for wait in waits)
            print(f"one fact, {ITERATIONS} iterations, from click to last chart: {told} s")
            browser.close()
    finally:
        running.terminate()
        running.wait()


if __name__ == "__main__":
    main()
