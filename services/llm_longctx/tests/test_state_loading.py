"""Plug-ins load the state that a request continues; without them the answer names the one to install."""

from types import SimpleNamespace

import pytest
from fastapi import FastAPI

from fovea import plugins
from fovea.api.replica import route_fields
from fovea.api.text import ChatRequest
from fovea.errors import InvalidOption, NotFound
from services.llm_longctx.api import embeddings, openai, state_loading
from services.llm_longctx.serving.request_extension import RequestExtension, open_extensions

FIELDS = ("session_id", "document_id")


def chat(**more):
    return ChatRequest(messages=[{"role": "user", "content": "hello"}], **more)


@pytest.fixture
def loaders(monkeypatch):
    found = {}
    monkeypatch.setattr(plugins, "entries", lambda _group: [SimpleNamespace(name=name) for name in sorted(found)])
    monkeypatch.setattr(plugins, "load_all", lambda _group, field: {n: found[n] for n in found if n == field})
    known = {"memory": {"fields": list(FIELDS)}, "steering": {"fields": ["capture"]}}
    monkeypatch.setattr(plugins, "_read_known", lambda: known)
    return found


def schema_of(app, name="ChatRequest"):
    return app.openapi()["components"]["schemas"][name]["properties"]


async def test_a_field_of_a_plug_in_that_is_not_installed_names_it_and_others_need_none(loaders):
    assert await state_loading.load_state(chat(), None, None) is None
    assert open_extensions(None, chat(), None) == []
    with pytest.raises(NotFound, match="'session_id' comes with the plug-in memory") as caught:
        open_extensions(None, chat(session_id="s"), None)
    assert (caught.value.hint, caught.value.field) == ("Try: pip install fovea-memory", "session_id")


def test_an_extension_of_two_fields_is_made_once_and_a_broken_one_for_its_field_only(loaders, monkeypatch):
    made = []

    class Extension(RequestExtension):
        def __init__(self, *given):
            made.append(given)

    loaders |= dict.fromkeys(("capture", "interventions", *FIELDS), Extension)
    body = chat(capture=[{"type": "logit_lens"}], interventions=[])
    assert len(open_extensions(1, body, 2)) == 1
    assert made == [(1, body, 2)]
    monkeypatch.setattr(plugins, "load_all", lambda _group, field: {} if field != "capture" else {}["broken"])
    assert open_extensions(1, chat(), 2) == []
    with pytest.raises(KeyError):
        open_extensions(1, body, 2)


async def test_a_request_continues_one_thing_by_the_loader_of_its_field(loaders):
    class Loader:
        async def load(self, body, request, host):
            return f"{body.session_id} {request} {host}"

    loaders |= dict.fromkeys(FIELDS, Loader())
    assert await state_loading.load_state(chat(session_id="s"), 1, 2) == "s 1 2"
    with pytest.raises(InvalidOption, match="document_id and session_id", check=lambda e: e.field == "document_id"):
        await state_loading.load_state(chat(session_id="s", document_id="d"), 1, 2)


def test_the_document_leaves_out_fields_that_nobody_reads(loaders):
    for installed in ((), ("session_id",)):
        loaders |= dict.fromkeys(installed)
        app = FastAPI()
        app.include_router(openai.router)
        state_loading.hide_missing_fields(app)
        assert [field for field in FIELDS if field in schema_of(app)] == list(installed)
        assert "temperature" in schema_of(app)
        assert ("capture" in schema_of(app), "capture" in schema_of(app, "Captured")) == (False, True)


def fields_of(*modules):
    """List what a replica announces of the routes of such modules."""
    app = FastAPI()
    for module in modules:
        app.include_router(module.router)
    return route_fields(app.openapi(), lambda path: path.startswith("/v1"))


def test_chats_and_completions_are_affine():
    found = fields_of(embeddings, openai)
    assert set(found["affine"]) == {"/v1/chat/completions", "/v1/completions"}
    assert "/v1/embeddings" in found["routes"]
