"""Methods that somebody adds in one file, as docs/07 shows them: found, served, described, refused by their class."""

import re
import sys
from pathlib import Path

import pytest

from services.llm_longctx import methods as room
from services.llm_longctx.methods import methods
from services.llm_longctx.tests.method_contract import CHECKS

OWN = ("dotted", "heaviest")
PAGE = Path(__file__).parents[3] / "docs/07-long-contexts.md"


@pytest.fixture(scope="module", autouse=True)
def _from_the_page(tmp_path_factory):
    texts = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf8"), re.DOTALL | re.MULTILINE)
    folder = tmp_path_factory.mktemp("room")
    for name, text in zip(OWN, texts, strict=True):
        (folder / f"{name}.py").write_text(text, "utf8")
    room.__path__.append(str(folder))
    methods.cache_clear()
    yield
    room.__path__.remove(str(folder))
    for name in OWN:
        sys.modules.pop(f"{room.__name__}.{name}", None)
    methods.cache_clear()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", OWN)
def test_they_keep_the_contract(name, check):
    CHECKS[check](methods()[name])


def test_it_is_described_served_and_refused_over_http(server):
    told = server.http.get("/v1/longctx/methods/dotted").json()
    assert told["summary"] == "Reads a window and a dotted line of the past; frees nothing."
    assert told["knobs"]["properties"]["stride"]["description"] == "One in so many older tokens is read."
    ask = {"prompt": "Once upon a time there was a mill by the river", "max_tokens": 3}
    body = ask | {"longctx": {"method": "dotted", "stride": 2, "window": 4}}
    used = server.http.post("/v1/completions", json=body).json()["usage"]["longctx"]
    assert (used["method"], used["knobs"]) == ("dotted", {"stride": 2, "window": 4})
    assert used["prefill_density"] < 1
    refused = server.http.post("/v1/completions", json=ask | {"longctx": {"method": "dotted", "stride": 0}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "longctx.stride")
