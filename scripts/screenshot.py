"""Take the documentation's pictures: start the page, use its tabs in a real browser, keep what is seen.

python -m scripts.screenshot                       all of them, into docs/
python -m scripts.screenshot learn --out DIR --dark --width 380 --whole
"""

import argparse
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import app
from editing_core.models.host import ModelHost
from editing_core.statistics.covariance import CovarianceStore

DOCS = Path(__file__).resolve().parents[1] / "docs"
TIMEOUT = 120_000  # milliseconds for a piece of work
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_example(page: Page, number: int = 1, timeout: float = TIMEOUT) -> None:
    """Press an example's button, then Edit, and wait until the result is drawn."""
    page.locator(f"#example-{number}").click()
    page.wait_for_function("document.querySelector('#subject textarea, #subject input').value.length > 0")
    page.locator("#strip .es-token-edited").wait_for()
    page.locator("#edit").click()
    page.locator("#verdict .es-sign").wait_for(timeout=timeout)
    page.locator("#plot-perplexity .trace").first.wait_for()
    page.wait_for_timeout(800)


def run_trace(page: Page) -> None:
    """Trace the first fact of the form of the Edit tab."""
    run_example(page, 0)
    page.get_by_role("tab", name="Explore").click()
    page.locator("#trace").click()
    page.locator("#trace-sentence b").wait_for(timeout=TIMEOUT)
    page.wait_for_function("document.querySelector('#plot-trace-curves .js-plotly-plot').data.length > 0")
    page.wait_for_timeout(800)


def run_lesson(page: Page, step: int = 3) -> None:
    """One step of the lesson."""
    page.get_by_role("tab", name="Learn").click()
    page.locator("#lesson-at label").nth(step - 1).click()
    page.locator("#lesson-text", has_text=f"{step}. ").wait_for()
    page.locator("#lesson-run").click()
    page.locator("#lesson-line", has_text="done").wait_for(timeout=TIMEOUT)
    page.wait_for_function("document.querySelector('#plot-lesson .js-plotly-plot').data.length > 0")
    page.wait_for_timeout(800)


PICTURES: dict[str, Callable[[Page], None]] = {"edit": run_example, "explore": run_trace, "learn": run_lesson}


def main() -> None:
    """Start the page on a free port and write the pictures."""
    parser = argparse.ArgumentParser(description="Take the documentation's pictures.")
    parser.add_argument("tabs", nargs="*", metavar="TAB", help=f"of {', '.join(PICTURES)}; all unless given")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for screenshot-TAB.png")
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="the whole page, not only the first screen")
    options = parser.parse_args()
    tabs = options.tabs or list(PICTURES)
    if unknown := [tab for tab in tabs if tab not in PICTURES]:
        parser.error(
            f"{', '.join(unknown)} is no tab with a picture, allowed are {', '.join(PICTURES)}; name some of them."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    host = ModelHost()
    app.warm(host, CovarianceStore())
    demo = app.build(host)
    _, url, _ = demo.launch(prevent_thread_lock=True, server_port=free_port(), quiet=True, **app.LAUNCH)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        for tab in tabs:
            page = browser.new_page(viewport={"width": options.width, "height": options.height})
            page.goto(url + ("?__theme=dark" if options.dark else "?__theme=light"))
            PICTURES[tab](page)
            page.mouse.move(0, 0)
            page.screenshot(path=str(options.out / f"screenshot-{tab}.png"), full_page=options.whole)
            page.close()
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
