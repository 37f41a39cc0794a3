"""schemathesis over OpenAI's routes: whatever the document allows is answered as it promises, and nothing is a 5xx."""

import pytest
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from services.llm_longctx.api import openai
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz, list_operations

CHECKS = [
    not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance,
]  # fmt: skip
APP = build("llm-longctx", routers=[openai.router], servables={}, settings=Settings())
OPERATIONS = list_operations(APP, "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")


def change(body):
    body["model"] = None  # else nearly every request stops at an unknown model
    for remembered in ("session_id", "document_id"):  # needs Redis, and is fuzzed next to the routes that store it
        body.pop(remembered, None)


@pytest.mark.parametrize("label", OPERATIONS)
def test_the_document_holds_for_every_request_it_allows(label, server):
    fuzz(OPERATIONS[label], server.url, 2, CHECKS, change)
