"""schemathesis over routes: requests that an OpenAPI document allows, and what may be wrong with the answers.

It is imported where it is used: its import takes a second of each process that collects tests.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from tests.harness.hypothesis_profiles import fewer


def fuzz(
    document: Mapping[str, Any],
    url: str,
    share: int,
    *prefixes: str,
    examples: int | None = None,
    conforms: bool = False,
    prepare: Callable[[Any], None] = lambda _case: None,
    change: Callable[[Any], Any] = lambda body: body,
    change_query: Callable[[Any], Any] = lambda query: query,
    wanted: Callable[[Any], bool] = lambda _operation: True,
    allowed: Collection[int] = (),
    headers: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> None:
    """Send one in `share` of the profile's examples to each operation; none may answer with a server error.

    It asks operations that are `wanted`, below one of the `prefixes` if there are any, each with so many `examples` if
    that is given. `prepare` changes a request in place; `change` and `change_query` return another body and query.
    Statuses that are `allowed` are always accepted. If it `conforms`, an answer must be one that the document promises.
    """
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks as promises

    checks = [not_a_server_error]
    if conforms:
        checks += [promises.status_code_conformance, promises.content_type_conformance]
        checks += [promises.response_schema_conformance]
    found = [result.ok() for result in schemathesis.openapi.from_dict(dict(document)).get_all_operations()]
    operations = [each for each in found if each.path.startswith(prefixes or ("/",)) and wanted(each)]
    assert operations
    failures = {}
    for operation in operations:
        # Shrinking would ask the server for minutes.
        @settings(
            max_examples=examples or fewer(share), suppress_health_check=list(HealthCheck), database=None,
            phases=[Phase.explicit, Phase.generate],
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            prepare(case)
            case.body, case.query = change(case.body), change_query(case.query)
            if (answer := case.call(base_url=url, headers=headers, timeout=timeout)).status_code not in allowed:
                case.validate_response(answer, checks=checks)

        try:
            send()
        except Exception as error:  # noqa: BLE001  # all failures are listed at once
            failures[operation.label] = str(error)
    assert failures == {}
