"""schemathesis sends what the gateway's OpenAPI document allows to the whole product: never a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LEFT_OUT = ("/unload", "/events", "/completions", "/stream")
"""Unloading takes the model from the other tests; event streams do not end by themselves; nobody can make up a
stream of frames; a long answer of the language model may rightly pass its deadline (they are fuzzed apart)."""

UNWRITABLE = ("POST /v1/dicomweb/studies",)
"""Takes multipart/related, which schemathesis can't write; its own tests send broken bodies."""

LONG = ("/v1/probe", "/v1/judge", "/v1/longctx")
"""Studies and judgements read a language model for minutes: a deadline that rightly passes is no fault. Their
routes are tested in their own rooms, with small models."""


def test_no_operation_of_the_product_answers_with_a_server_error(product, subtests):
    document = schemathesis.openapi.from_url(f"{product.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:
        if operation.label in UNWRITABLE or operation.path.endswith(LEFT_OUT) or operation.path.startswith(LONG):
            continue

        @settings(
            max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
        )
        @given(case=operation.as_strategy())
        def fuzz(case):
            case.call_and_validate(checks=[not_a_server_error], timeout=120)

        with subtests.test(operation.label):
            fuzz()
