"""Fixtures of the page: one app on one host around the bundled model, served on a free port."""

import json
import shutil
import warnings

import pytest

import app
from editing_core.bench.desk import Desk
from editing_core.models.host import ModelHost
from editing_core.statistics.covariance import CovarianceStore

PATIENCE = 30_000  # milliseconds that an expectation may take to come true: a busy machine is slow, not wrong
LAPTOP = {"width": 1440, "height": 900}
SILENT = {"state", "group", "button"}  # components for which the client gets no output


@pytest.fixture(scope="session")
def host(pocket):
    host = ModelHost()
    host._loaded["pocket-gpt2"] = pocket
    app.warm(host, CovarianceStore())
    return host


@pytest.fixture(scope="session")
def assembled(host, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = app.assemble(host, Desk(tmp_path_factory.mktemp("runs")))
        parts.page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **app.LAUNCH)
    yield parts
    parts.page.close()


@pytest.fixture(scope="session")
def page(assembled):
    return assembled.page


@pytest.fixture(scope="session")
def tab(assembled):
    return assembled.edit


@pytest.fixture(scope="session")
def parameters(page):
    """Widget id -> parameter name of the `edit` endpoint, so that tests name widgets and not positions."""
    config = page.get_config_file()
    edit = next(d for d in config["dependencies"] if d["api_name"] == "edit")
    info = page.get_api_info()["named_endpoints"]["/edit"]["parameters"]
    names = [p["parameter_name"] for p in info]
    states = {c["id"] for c in config["components"] if c["type"] == "state"}
    return dict(zip([i for i in edit["inputs"] if i not in states], names, strict=True))


@pytest.fixture(scope="session")
def saying(tab, parameters):
    """From a fact to the keyword arguments of `edit`."""

    def arguments(subject="Edward Matthew Ward", prompt="{} was born in", old="London", new="Boston", **more):
        form, settings = tab.form, tab.settings
        chosen = {form.subject: subject, form.prompt: prompt, form.old: old, form.new: new, settings.iterations: 1}
        by_name = {
            "stop": settings.stop,
            "iterations": settings.iterations,
            "editor": settings.editor,
            "seed": settings.seed,
        }
        chosen |= {by_name[name]: value for name, value in more.items()}
        return {parameters[widget._id]: value for widget, value in chosen.items()}

    return arguments


@pytest.fixture(scope="session")
def output_of(page):
    """What an endpoint gave for one widget, found by the widget."""
    config = page.get_config_file()
    silent = {c["id"] for c in config["components"] if c["type"] in SILENT}

    def find(outputs, widget, name="edit"):
        dependency = next(d for d in config["dependencies"] if d["api_name"] == name)
        value = outputs[[i for i in dependency["outputs"] if i not in silent].index(widget._id)]
        if isinstance(value, dict) and "value" in value:
            value = value["value"]
        return json.loads(value["plot"]) if isinstance(value, dict) and "plot" in value else value

    return find


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    from scripts.screenshot import ARGUMENTS  # needs Playwright, too

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opening(browser):
    """Opens an address as a visitor of its own would; every console error fails the test."""
    contexts, errors = [], []

    def opened(url, viewport=LAPTOP, script=""):
        context = browser.new_context(viewport=viewport, accept_downloads=True)
        contexts.append(context)
        sheet = context.new_page()
        sheet.add_init_script(script)
        sheet.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        sheet.on("pageerror", lambda error: errors.append(str(error)))
        sheet.goto(url)
        sheet.locator("#edit").wait_for()
        return sheet

    yield opened
    for context in contexts:
        context.close()
    assert not errors
