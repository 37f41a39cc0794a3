"""schemathesis over the gateway's own routes, with a key that may do everything: no request makes it fail."""

import asyncio
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from schemathesis.checks import not_a_server_error

from services.gateway.app import build_gateway
from services.gateway.policy.auth import KeyRing
from services.gateway.policy.caller import SCOPES
from services.gateway.tests.stage import ForgetfulQueue
from shared.settings import Settings
from tests.harness.hypothesis_profiles import fewer

DOCUMENT = build_gateway(Settings()).openapi()
OPERATIONS = {
    operation.label: operation
    for operation in (result.ok() for result in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
    if not operation.path.endswith("/events")
}


async def test_no_request_that_the_document_allows_makes_the_gateway_fail(gateway, tmp_path):
    _, key = KeyRing(tmp_path / "keys.json").add("ops", SCOPES, rate_per_minute=1_000_000)
    scene = await gateway(queue=ForgetfulQueue(None), auth="keys")
    assert len(OPERATIONS) > 15
    failures = []

    def walk(label: str) -> None:
        @examples(max_examples=fewer(5), suppress_health_check=list(HealthCheck), database=None)
        @given(case=OPERATIONS[label].as_strategy())
        def fuzz(case: Any) -> None:
            if case.method == "DELETE":
                return  # it would revoke the key that is used here
            answer = case.call(base_url=scene.url, headers={"x-api-key": key}, timeout=10)
            # Not ready is the truth here: there is no service.
            if answer.status_code != 503:
                case.validate_response(answer, checks=[not_a_server_error])

        try:
            fuzz()
        except Exception as error:  # noqa: BLE001  # all failures are listed at once
            failures.append(f"{label}: {error}")

    for label in OPERATIONS:
        await asyncio.to_thread(walk, label)
    assert failures == []
