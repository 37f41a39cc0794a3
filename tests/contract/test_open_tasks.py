"""A task of `plugins/example` that nothing here knows is routed, listed and shown by its record and schema alone."""

import importlib
from pathlib import Path

import httpx2
import pytest

from services.gateway.tests.stage import fronted
from shared.serving.build_app import build
from shared.settings import Settings

TASK = "count-words"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    settings = Settings(data_dir=folder, redis_url=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "plugins/example")
        kind = importlib.import_module("fovea_example.models.word_counter").WordCounter
        app = build("cells", servables={kind.card.name: kind}, settings=settings)
    with fronted(app, "cells", folder) as (address, _, _):
        yield address


def test_the_console_shows_it_with_a_title_a_form_and_the_generic_result_view(url):
    assert "Count words" in httpx2.get(url).text
    assert f"/console/run/{TASK}?model=word-counter" in httpx2.get(f"{url}/console/models").text
    page = httpx2.get(f"{url}/console/run/{TASK}").text
    assert "<h1>Count words</h1>" in page
    assert 'name="text"' in page
    assert "<fovea-result" in page
    assert f'data-path="/v1/{TASK}"' in page
    card = httpx2.get(f"{url}/console/models/word-counter").text
    assert "It is split at white space." in card
    assert f"curl {url}/v1/{TASK}" in card
