"""Fixtures of tests that use a product through a browser or by its command line; the test says at which `url`."""

import pytest


@pytest.fixture(scope="module")
def chromium():
    from services.gateway.tests.browsing import browser

    with browser() as started:
        yield started


@pytest.fixture
def complaints():
    """The browser's complaints; a test that expects a complaint takes it out."""
    found: list[str] = []
    yield found
    assert not found


@pytest.fixture(scope="module")
def contexts():
    """Contexts of the browser, by the address that their pages are of."""
    return {}


@pytest.fixture
def page(chromium, contexts, url, complaints):
    from services.gateway.tests.browsing import new_context, revisiting

    if url not in contexts:
        contexts[url] = new_context(chromium, url)
    with revisiting(contexts[url], url, complaints) as opened:
        yield opened


@pytest.fixture
def fovea(url, monkeypatch, capfdbinary):
    """Run a command; gives its exit code, what it wrote and its standard error."""
    from tests.command import command_runner  # here and above: what most processes of a run need none of

    monkeypatch.setenv("FOVEA_URL", url)
    return command_runner(monkeypatch, capfdbinary)


@pytest.fixture
def see():
    from playwright.sync_api import expect

    return expect
