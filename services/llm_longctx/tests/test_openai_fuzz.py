"""schemathesis over OpenAI's routes: whatever the document allows is answered as it promises, and nothing is a 5xx."""

from services.llm_longctx.api import openai
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")


def change(body):
    """Without a model, else nearly every request stops at an unknown one.

    Sessions and documents need Redis; the plug-in that stores them fuzzes its routes.
    """
    if not isinstance(body, dict):
        return body
    return {name: value for name, value in body.items() if name not in {"session_id", "document_id"}} | {"model": None}


def test_the_document_holds_for_every_request_it_allows(server):
    app = build("llm-longctx", routers=[openai.router], servables={}, settings=Settings())
    fuzz(app.openapi(), server.url, 2, *PATHS, conforms=True, change=change)
