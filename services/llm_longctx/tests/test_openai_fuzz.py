"""schemathesis over OpenAI's routes: whatever the document allows is answered as it promises, and nothing is a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.llm_longctx.api import openai
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.hypothesis_profiles import fewer

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = build("llm-longctx", routers=[openai.router], servables={}, settings=Settings()).openapi()
ROUTES = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
OPERATIONS = {
    operation.path: operation
    for operation in (result.ok() for result in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
}


@pytest.mark.parametrize("route", ROUTES)
def test_the_document_holds_for_every_request_it_allows(route, server):
    @examples(max_examples=fewer(2), suppress_health_check=list(HealthCheck), database=None)
    @given(case=OPERATIONS[route].as_strategy())
    def fuzz(case):
        if isinstance(case.body, dict):
            case.body["model"] = None  # else nearly every request stops at an unknown model
            # What is remembered needs Redis, and is fuzzed beside the routes that store it.
            case.body.pop("session_id", None)
            case.body.pop("document_id", None)
        case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=30)

    fuzz()
