"""Isolation: visitors share one model and see only their own runs; the model is bit-equal whatever happens."""

import time

import pytest
import torch
from gradio_client import Client

from components.edit_tab import STOPPED


@pytest.fixture
def unchanged(pocket):
    """After the test the shared model must be what it was before, bit by bit."""
    before = {name: tensor.clone() for name, tensor in pocket.model.state_dict().items()}
    yield
    with pocket.lock:
        after = pocket.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def until(true, seconds=60.0):
    """Wait for something to become true; False when it did not."""
    end = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


@pytest.mark.usefixtures("unchanged")
def test_two_visitors_at_once_see_only_their_own_edit(page, saying, output_of, tab):
    clients = [Client(page.local_url, verbose=False) for _ in range(2)]
    facts = [
        {"subject": "Edward Matthew Ward", "prompt": "{} was born in", "old": "London", "new": "Boston"},
        {"subject": "Mario Del Monaco", "prompt": "{}, often placed in the genre", "old": "opera", "new": "sitcom"},
    ]
    jobs = [c.submit(**saying(**fact), api_name="/edit") for c, fact in zip(clients, facts, strict=True)]
    for job in jobs:
        job.result(timeout=120)
    results = [client.predict(api_name="/shown") for client in clients]
    for result, fact, other in zip(results, facts, reversed(facts), strict=True):
        shown = str([output_of(result, widget, "shown") for widget in tab.view.outputs])
        assert fact["new"] in output_of(result, tab.view.verdict, "shown")
        assert fact["subject"] in shown
        assert other["subject"] not in shown
    undone = clients[0].predict(api_name="/undo")
    assert "Undone" in output_of(undone, tab.progress.line, "undo")
    assert "No edit yet" in output_of(clients[0].predict(api_name="/shown"), tab.view.verdict, "shown")


@pytest.mark.usefixtures("unchanged")
def test_stop_leaves_the_model_as_it_was(page, saying, output_of, tab):
    client = Client(page.local_url, verbose=False)
    job = client.submit(**saying(iterations=10, stop="none"), api_name="/edit")
    assert until(lambda: len(tab.jobs) == 1 and len(job.outputs()) > 2)
    stopped = client.predict(api_name="/stop")
    assert STOPPED in output_of(stopped, tab.progress.line, "stop")
    assert len(tab.jobs) == 0


@pytest.mark.usefixtures("unchanged")
def test_a_cancelled_stream_stops_the_work(page, saying, tab):
    client = Client(page.local_url, verbose=False)
    job = client.submit(**saying(iterations=10, stop="none"), api_name="/edit")
    assert until(lambda: len(tab.jobs) == 1 and len(job.outputs()) > 2)
    job.cancel()
    assert until(lambda: len(tab.jobs) == 0, 10)


def test_a_visitor_cannot_stop_the_edit_of_another(page, saying, output_of, tab):
    one, other = (Client(page.local_url, verbose=False) for _ in range(2))
    job = one.submit(**saying(iterations=2, stop="none"), api_name="/edit")
    assert until(lambda: len(tab.jobs) == 1)
    other.predict(api_name="/stop")
    assert "Done in" in output_of(job.result(timeout=120), tab.progress.line)
