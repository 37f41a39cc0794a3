"""Whatever a front raises becomes an error in the form of its route; Accept headers are read as RFC 9110 says."""

import json

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fovea import errors
from shared.asgi.body import SlowBody
from shared.serving.http.error_rendering import render, translate
from shared.serving.http.errors import NotAcceptable, to_safe_error
from shared.serving.http.negotiation import choose


class Route:
    def __init__(self):
        self.openapi_extra = {"x-error-form": "openai"}


def scope(path="/v1/segment", **more):
    return {"path": path, **more}


def forms(*places):
    return RequestValidationError([{"loc": ("body", "a", *place), "msg": place[0], "type": "x"} for place in places])


def test_of_a_value_with_several_forms_the_one_that_fits_furthest_is_told():
    for raised, message, field in (
        (forms(("constrained-str",), ("list[float]", 3)), "list[float]", "a.3"),
        (forms(("literal['x','y']",), ("list[int]",)), "literal['x','y']", "a"),
        (forms(("str",), ("list[Part]", 0, "type"), ("list[Part]",)), "list[Part]", "a.0.type"),
        (forms(("b",), ("list[Part]", 0, "type")), "b", "a.b"),
    ):
        error = translate(raised)
        assert (error.field, error.detail) == (field, f"{field}: {message}.")


def invalid(**first):
    return RequestValidationError([{"loc": ("body", "a", 0), "msg": "is wrong", "type": "x", **first}])


@pytest.mark.parametrize(
    ("raised", "kind", "field"),
    [
        (invalid(), errors.InvalidOption, "a.0"),
        (invalid(loc=("query", "size")), errors.InvalidOption, "size"),
        (invalid(loc=("body",)), errors.InvalidOption, "body"),
        (invalid(type="json_invalid", ctx={"error": "Expecting value"}), errors.Malformed, None),
        (invalid(type="json_invalid"), errors.Malformed, None),
        (HTTPException(404), errors.NotFound, None),
        (HTTPException(404, "No such document."), errors.NotFound, None),
        (HTTPException(405, headers={"Allow": "GET"}), errors.MethodNotAllowed, None),
        (HTTPException(406, "x"), NotAcceptable, None),
        (HTTPException(408, "x"), SlowBody, None),
        (HTTPException(413, "x"), errors.TooLarge, None),
        (HTTPException(401, "x"), errors.Unauthenticated, None),
        (HTTPException(500, "x"), errors.Fault, None),
        (ClientDisconnect(), errors.Cancelled, None),
        (ZeroDivisionError("/etc/secret"), errors.Fault, None),
        (errors.Conflict("as it is"), errors.Conflict, None),
    ],
)
def test_anything_raised_becomes_an_error_of_ours(raised, kind, field):
    told = translate(raised)
    assert type(told) is kind
    assert told.field == field
    assert "secret" not in told.detail


def test_words_of_routers_and_our_errors_are_kept_and_those_of_others_are_not():
    assert translate(HTTPException(404, "No such document.")).detail == "No such document."
    assert translate(HTTPException(404)).detail == "There is no such route here."
    assert translate(HTTPException(405, headers={"Allow": "GET"})).hint == "It takes GET."
    assert "Expecting value" in translate(invalid(type="json_invalid", ctx={"error": "Expecting value"})).detail
    ours = errors.NotFound("x")
    assert to_safe_error(ours, "The model") is ours
    told = to_safe_error(RuntimeError("/etc/secret"), "The model pranet")
    assert told.detail == "The model pranet failed on this request."
    assert "log" in told.hint


@pytest.mark.parametrize(
    ("where", "form"),
    [
        (scope("/v1/segment"), "problem"), (scope("/v2/models/x/infer"), "oip"),
        (scope("/v1/chat/completions"), "openai"), (scope("/v1/completions"), "openai"),
        (scope("/anything", route=Route()), "openai"), (scope("/anything", route=object()), "problem"),
    ],
)  # fmt: skip
def test_form_follows_the_route(where, form):
    answer = render(where, errors.InvalidOption("threshold is 7.", field="threshold", hint="Use 0 to 1."))
    body = json.loads(answer.body)
    if form == "problem":
        assert (answer.status_code, answer.media_type) == (422, "application/problem+json")
        assert (body["field"], body["hint"], body["code"]) == ("threshold", "Use 0 to 1.", "invalid_option")
    elif form == "openai":
        assert answer.status_code == 400
        assert body["error"]["param"] == "threshold"
    else:
        assert answer.status_code == 400
        assert body == {"error": "threshold is 7. Use 0 to 1."}


@pytest.mark.parametrize(("seconds", "header"), [(None, None), (0.1, "1"), (2.0, "2"), (2.1, "3")])
def test_time_to_come_back_is_told_in_whole_seconds(seconds, header):
    assert render(scope(), errors.QueueFull("x", retry_after=seconds)).headers.get("retry-after") == header


OFFERED = ["application/json", "image/png", "image/webp"]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"), ("", "application/json"), ("*/*", "application/json"), ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"), ("image/*", "image/png"), ("image/webp, image/png;q=0.5", "image/webp"),
        ("image/png;q=0.2, application/json;q=0.1", "image/png"), ("image/png;level=1;q=0.7", "image/png"),
        ("image/*;q=0.9, image/png;q=0.1, */*;q=0.2", "image/webp"), ("application/json;q=0, */*", "image/png"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
    ],
)  # fmt: skip
def test_best_liked_offer_is_chosen(accept, chosen):
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/png;q=x", "video/*", "*/*;q=0"])
def test_nothing_that_fits_is_said_with_what_is_offered(accept):
    with pytest.raises(NotAcceptable) as refused:
        choose(accept, OFFERED)
    assert refused.value.status == 406
    assert "image/webp" in refused.value.hint


@given(accept=st.text(alphabet="abcimage/*pngjson,;q=.0159 ", max_size=60))
def test_any_header_chooses_an_offer_or_is_refused(accept):
    try:
        assert choose(accept, OFFERED) in OFFERED
    except NotAcceptable:
        assert accept.strip()


@given(order=st.permutations(OFFERED))
def test_among_equals_the_first_offered_wins(order):
    assert choose(", ".join(reversed(order)), order) == order[0]
