"""schemathesis over sessions and documents: whatever their document allows is no fault of ours."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from schemathesis.checks import not_a_server_error

from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.hypothesis_profiles import fewer

DOCUMENT = build("llm-longctx", servables={}, settings=Settings()).openapi()
OPERATIONS = {
    operation.label: operation
    for operation in (result.ok() for result in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
    if operation.path.startswith(("/v1/sessions", "/v1/documents"))
}


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_that_the_document_allows_is_a_server_error(label, mixers):
    @examples(max_examples=fewer(3), suppress_health_check=list(HealthCheck), database=None)
    @given(case=OPERATIONS[label].as_strategy())
    def fuzz(case):
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = None  # else nearly every request stops at an unknown model
        case.call_and_validate(base_url=mixers.url, checks=[not_a_server_error], timeout=30)

    fuzz()
