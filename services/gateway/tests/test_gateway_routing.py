"""The table of routes: literal paths, templates, what is below, and names of models."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.api.replica import ReplicaRecord
from fovea.errors import InvalidOption, NotFound, TooLarge
from services.gateway.http.errors import find_error_format
from services.gateway.routing.route_table import RouteTable
from shared.asgi.errors import render_error


def replica(service, routes=(), models=(), name="r1", **marks: Any):
    where = {"id": f"{service}-{name}", "service": service, "http": "http://h:1", "pid": 1}
    return ReplicaRecord(**where, ready=True, models=models, routes=routes, seen=0, **marks)


LLM = ("/v1/chat/completions", "/v1/sessions/{id}", "/v1/probe/{kind}/run", "/v1/documents")
TABLE = RouteTable.from_records(
    [
        replica("seg", ("/v1/segment", "/livez", "/v1/models", "/v2/models/{name}/infer"), ("pranet", "org/pranet")),
        replica("llm", LLM, ("a/ready",), effectful=("/v1/sessions/{id}", "/v1/documents")),
        replica("papers", ("/v1/papers/{path:path}",)),
    ]
)
ADAPTERS = replica("llm", ("/v1/lora-adapters",), ("smollm",))
WITH_ADAPTERS = RouteTable.from_records([replica("seg", ("/v1/segment",), ("pranet",)), ADAPTERS])


@pytest.mark.parametrize(
    ("path", "service", "label"),
    [
        ("/v1/segment", "seg", "/v1/segment"),
        ("/v1/segment/more/below", "seg", "/v1/segment"),
        ("/v1/sessions/42", "llm", "/v1/sessions/{id}"),
        ("/v1/probe/heads/run", "llm", "/v1/probe/{kind}/run"),
        ("/v1/documents/7/pages", "llm", "/v1/documents"),
        ("/v1/papers/a/b/c", "papers", "/v1/papers/{path:path}"),
        ("/v2/models/pranet/infer", "seg", "/v2/models/{name}/infer"),
        ("/v2/models/org/pranet/versions/2/ready", "seg", "/v2/models/{name}/ready"),
        ("/v2/models/pranet", "seg", "/v2/models/{name}/"),
        ("/v2/models/a/ready/infer", "llm", "/v2/models/{name}/infer"),
        ("/v2/repository/models/org/pranet/load", "seg", "/v2/repository/models/{name}/load"),
        ("/v1/models/org/pranet", "seg", "/v1/models/{name}/"),
        ("/v1/models/org/pranet/example", "seg", "/v1/models/{name}/example"),
        ("/v1/models/org/pranet/sparsity", "seg", "/v1/models/{name}/sparsity"),
    ],
)
def test_a_path_leads_to_its_service(path, service, label):
    route = TABLE.find(path)
    assert (route.services, route.label) == ((service,), label)


@pytest.mark.parametrize(
    "path",
    ["/", "/livez", "/v1/models", "/v1/jobs/1", "/v1/segmentation", "/v1/probe/heads", "/v1/segment/../x", "/v2"],
)
def test_paths_of_our_own_and_of_nobody_lead_nowhere(path):
    assert TABLE.find(path) is None


def test_an_unknown_model_is_told_with_those_there_are_and_its_card_asked_of_the_service_with_adapters():
    with pytest.raises(NotFound) as refused:
        TABLE.find("/v2/models/prenet/infer")
    assert "org/pranet" in (refused.value.hint or "")
    route = WITH_ADAPTERS.find("/v1/models/my-adapter")
    assert (route.services, route.model) == (("llm",), "my-adapter")
    assert WITH_ADAPTERS.find("/v1/models/pranet").services == ("seg",)
    with pytest.raises(NotFound):
        WITH_ADAPTERS.find("/v2/models/my-adapter/infer")


def test_routes_are_effectful_or_endless_where_one_replica_marks_them_and_never_by_their_name():
    effectful = ("/v1/sessions/42", "/v1/documents", "/v1/documents/7/pages")
    for path in (*effectful, "/v1/chat/completions", "/v1/papers/a"):
        assert TABLE.find(path).is_effectful is (path in effectful), path
    table = RouteTable.from_records([replica("old", ("/v1/sessions", "/v1/documents", "/v1/detect/stream"))])
    assert not any(route.is_effectful or route.is_endless for route in table.paths.values())
    marks = {"effectful": ("/v1/x",), "endless": ("/v1/x",)}
    records = [replica("a", ("/v1/x",), name="new", **marks), replica("a", ("/v1/x",), name="old")]
    for order in (records, records[::-1]):
        route = RouteTable.from_records(order).paths["/v1/x"]
        assert (route.services, route.is_effectful, route.is_endless) == (("a",), True, True)
    record = ReplicaRecord.model_validate_json(
        '{"id":"x","service":"s","http":"http://h:1","pid":1,"ready":true,"models":[],"routes":["/v1/x"],"seen":0}'
    )
    assert (record.effectful, record.endless) == ((), ())


@given(st.text(max_size=60))
def test_no_path_breaks_the_table(text):
    for prefix in ("/", "/v1/", "/v2/models/", "/v1/models/", "/v2/repository/models/"):
        try:
            route = TABLE.find(prefix + text)
        except NotFound:
            continue
        assert route is None or route.services


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/v2/models/x/infer", "oip", 400), ("/v1/chat/completions", "openai", 400),
        ("/v1/models", "openai", 400), ("/v1/messages", "anthropic", 400),
        ("/v1/messages/count_tokens", "anthropic", 400), ("/v1/messagesx", "problem", 422),
        ("/v1/modelsx", "problem", 422), ("/v1/segment", "problem", 422),
    ],
)  # fmt: skip
def test_each_family_has_its_own_form_and_knows_its_own_statuses(path, form, status):
    assert find_error_format(path) == form
    assert render_error(InvalidOption("no"), find_error_format(path), "id")[0] == status
    assert render_error(TooLarge("no"), find_error_format(path), "id")[0] == 413
