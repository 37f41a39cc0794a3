"""API reference: each operation has a name, a group and an example that fits its schemas, each parameter a text.

`python -m tests.reference URL` records the examples again.
"""

import pytest

from services.gateway.http.reference_groups import GROUPS
from tests.reference.recorder import build_apps, build_document, check_value, list_operations

WITHOUT_ANSWER = {"GET /health", "GET /ping", "POST /v1/dicomweb/studies"}
"""Their answers have no content here."""


@pytest.fixture(scope="module")
def document():
    return build_document(build_apps())


def test_an_operation_says_what_it_does_and_where_it_belongs(document):
    for label, operation in list_operations(document):
        assert len(operation["summary"].split()) > 1, label
        assert operation["tags"][0] in {group.title for group in GROUPS}, label
        undescribed = [p["name"] for p in operation.get("parameters", ()) if len(p.get("description", "")) < 5]
        assert undescribed == [], label


def test_an_operation_has_an_example_that_fits_its_schemas(document):
    for label, operation in list_operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                check_value(document, parameter["schema"], parameter["example"])
        bodies = [operation.get("requestBody", {}).get("content", {})]
        answers = [answer.get("content", {}) for answer in operation["responses"].values()]
        for contents in (bodies, [] if label in WITHOUT_ANSWER else answers):
            media = [one for content in contents for one in content.values()]
            examples = [one for one in media if "example" in one]
            assert examples or not media, label
            for one in examples:
                check_value(document, one.get("schema", {}), one["example"])
