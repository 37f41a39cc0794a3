"""schemathesis over a service's OpenAPI document: what it promises is what it does, and nothing makes it fail."""

from shared.serving.build_app import build
from shared.serving.tests.oip_mirrors import serving
from shared.serving.tests.toys import TOYS
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz


def awake(body):
    if isinstance(body, dict):
        return {name: 0 if name == "sleep" else awake(value) for name, value in body.items()}
    return [awake(value) for value in body] if isinstance(body, list) else body


def test_document_holds_for_every_request_it_allows():
    document = build("toy", servables=TOYS, settings=Settings()).openapi()
    with serving(TOYS) as replica:
        wanted = lambda one: not one.path.startswith("/v2")  # noqa: E731
        fuzz(document, replica.http, 5, conforms=True, change=awake, change_query=awake, wanted=wanted)
