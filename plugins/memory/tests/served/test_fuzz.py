"""schemathesis over sessions and documents: whatever their document allows is not a fault of ours."""

from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz


def change(body):
    """Without a model of its own, or nearly every request would stop at an unknown one."""
    return body | {"model": None} if isinstance(body, dict) and "model" in body else body


def test_no_request_that_the_document_allows_is_a_server_error(mixers):
    app = build("llm-longctx", servables={}, settings=Settings())
    fuzz(app.openapi(), mixers.url, 3, "/v1/sessions", "/v1/documents", change=change)
