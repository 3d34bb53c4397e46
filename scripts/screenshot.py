"""Take the documentation's screenshot: start the page, run the second example in a real browser, keep a picture."""

import argparse
import shutil
import socket
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import app
from editing_core.models.host import ModelHost
from editing_core.statistics.covariance import CovarianceStore

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "screenshot.png"
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


def run_example(page: Page, number: int = 1, timeout: float = 120_000) -> None:
    """Press an example's button, then Edit, and wait until the result is drawn."""
    page.locator(f"#example-{number}").click()
    page.wait_for_function("document.querySelector('#subject textarea, #subject input').value.length > 0")
    page.locator("#strip .es-token-edited").wait_for()
    page.locator("#edit").click()
    page.locator("#verdict .es-sign").wait_for(timeout=timeout)
    page.locator("#plot-perplexity .trace").first.wait_for()
    page.wait_for_timeout(800)


def main() -> None:
    """Start the page on a free port and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="the whole page, not only the first screen")
    options = parser.parse_args()
    host = ModelHost()
    app.warm(host, CovarianceStore())
    demo = app.build(host)
    _, url, _ = demo.launch(prevent_thread_lock=True, server_port=free_port(), quiet=True, **app.LAUNCH)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": options.width, "height": options.height})
        page.goto(url + ("?__theme=dark" if options.dark else "?__theme=light"))
        run_example(page)
        options.out.parent.mkdir(exist_ok=True)
        page.screenshot(path=str(options.out), full_page=options.whole)
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
