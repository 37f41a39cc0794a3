"""schemathesis over a service's OpenAPI document: what it promises is what it does, and nothing makes it fail."""

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

from shared.serving.build_app import build
from shared.serving.tests.oip_mirrors import serving
from shared.serving.tests.toys import TOYS
from shared.settings import Settings
from tests.harness.hypothesis_profiles import fewer

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = build("toy", servables=TOYS, settings=Settings()).openapi()
OPERATIONS = {
    operation.label: operation
    for operation in (result.ok() for result in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
    if not operation.path.startswith("/v2")
}


@pytest.fixture(scope="module")
def url():
    with serving(TOYS) as replica:
        yield replica.http


def awake(body):
    if isinstance(body, dict):
        return {name: 0 if name == "sleep" else awake(value) for name, value in body.items()}
    return [awake(value) for value in body] if isinstance(body, list) else body


@pytest.mark.parametrize("label", OPERATIONS)
def test_document_holds_for_every_request_it_allows(label, url):
    @examples(max_examples=fewer(5), suppress_health_check=list(HealthCheck), database=None)
    @given(case=OPERATIONS[label].as_strategy())
    def fuzz(case):
        case.body = awake(case.body)
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=10)

    fuzz()


def test_document_describes_every_form_of_a_picture_s_request_and_answer():
    operation = DOCUMENT["paths"]["/v1/segment"]["post"]
    assert set(operation["requestBody"]["content"]) == {"application/json", "multipart/form-data", "image/*"}
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "image/png"}
    assert {parameter["name"] for parameter in operation["parameters"]} == {"model", "threshold", "invert"}
    assert "413" in operation["responses"]
    one, many = operation["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert one["properties"]["image"]["contentMediaType"] == "image/*"
    assert many["properties"]["images"]["maxItems"] == Settings().max_images
    assert "toy/eye" in operation["description"]
