"""The example, as it is installed: its model, method, route, command and page work in front of and behind a gateway."""

import json
import re
import sys

import httpx2
import pytest
import torch

from fovea.cli.main import main
from services.gateway.tests.stage import fronted
from services.llm_longctx.methods import method, methods
from services.llm_longctx.methods.core.hook_inputs import ScoringView
from shared.registry import servables
from shared.serving.build_app import build
from shared.settings import Settings


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """URL of a gateway in front of the service detection, which has this plug-in's models alone."""
    folder = tmp_path_factory.mktemp("site")
    own = {name: kind for name, kind in servables("detection").items() if kind.__module__.startswith("fovea_example.")}
    app = build("detection", servables=own, settings=Settings(data_dir=folder))
    with fronted(app, "detection", folder) as (url, _, _):
        yield url


def test_the_model_and_the_route_are_served_and_described(site):
    with httpx2.Client(base_url=site) as client:
        assert "word-counter" in {entry["id"] for entry in client.get("/v1/models").json()["data"]}
        answer = client.post("/v1/count-words", json={"text": "one two one"}).json()
        assert answer["words"] == {"one": 2, "two": 1}
        assert client.post("/v1/count-words", json={"text": ""}).status_code == 422
        answer = client.get("/v1/example/longest-word", params={"text": "a bcd ef ghi"})
        assert answer.json() == {"word": "bcd", "length": 3}
        assert {"/v1/example/longest-word", "/v1/count-words"} <= client.get("/openapi.json").json()["paths"].keys()


def test_the_command_asks_the_gateway(site, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fovea", "count-words", "b a b", "--url", site])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert json.loads(capsys.readouterr().out) == {"a": 1, "b": 2}


def test_the_page_is_in_the_navigation_with_its_module(site):
    with httpx2.Client(base_url=site) as client:
        page = client.get("/console/words").text
        assert '<a href="/console/words" aria-current="page">' in page
        module = re.search(r'<script type="module" src="(/console/static/\w+/plugins/words/words\.js)">', page)
        assert module
        assert "fovea-words" in client.get(module[1]).text
        assert '<a href="/console/words" >' in client.get("/").text


def test_the_method_scores_changes_of_keys():
    assert "novel-keys" in methods()
    keys = torch.tensor([[[3.0, 4.0], [3.0, 5.0], [1.0, 5.0]]])
    view = ScoringView(layer=0, q=keys, k=keys, v=keys, positions=torch.arange(3)[None], tokens=3)
    assert method("novel-keys").score(view).tolist() == [[25.0, 1.0, 4.0]]
