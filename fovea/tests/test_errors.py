"""The error tree is what its docstring draws, and every front renders every error."""

import pytest

import fovea.errors as tree
from fovea.api.problem import Problem, from_problem, oip_error, openai_error, problem
from fovea.errors import InvalidOption, by_status

CLASSES = [one for one in vars(tree).values() if isinstance(one, type) and one.__module__ == tree.__name__]
GRPC = {
    "INTERNAL", "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED", "CANCELLED", "UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED",
}  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES)
def test_class_has_status_grpc_code_and_title(cls):
    assert 400 <= cls.status < 600
    assert cls.grpc in GRPC
    assert cls.title[0].isupper()


# MethodNotAllowed is made of a path and its methods, and has no field.
@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not tree.MethodNotAllowed])
def test_problem_round_trips_to_the_same_kind(cls):
    body = problem(cls("why", hint="try", field="threshold"), "id-1")
    error = from_problem(Problem.model_validate_json(body.model_dump_json()))
    assert (error.status, error.detail, error.hint, error.field) == (cls.status, "why", "try", "threshold")


def test_openai_body_names_the_parameter_and_says_what_to_try():
    body = openai_error(InvalidOption("top_p is 3.", hint="Use 0 to 1.", field="top_p"), "r1")["error"]
    assert (body["param"], body["message"]) == ("top_p", "top_p is 3. Use 0 to 1.")
    assert body["type"] == "invalid_request_error"


def test_open_inference_body_is_one_sentence_under_error():
    assert oip_error(InvalidOption("bad shape.")) == {"error": "bad shape."}


def test_unknown_status_still_becomes_a_kind():
    assert by_status(418).status == 400
    assert by_status(599).status == 500
