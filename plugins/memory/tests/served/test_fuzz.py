"""schemathesis over sessions and documents: whatever their document allows is not a fault of ours."""

import pytest

from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz, list_operations

APP = build("llm-longctx", servables={}, settings=Settings())
OPERATIONS = list_operations(APP, "/v1/sessions", "/v1/documents")


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_that_the_document_allows_is_a_server_error(label, mixers):
    # Without a model of its own, or nearly every request would stop at an unknown one.
    fuzz(OPERATIONS[label], mixers.url, 3, change=lambda body: body.update({"model": None} if "model" in body else {}))
