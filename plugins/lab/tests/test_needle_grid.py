"""The needle grid: heads that are hidden, methods that are asked over the OpenAI protocol, refusals."""

import json

import httpx2
import numpy as np
import pytest

from fovea.errors import BadInput, NotReady
from fovea_lab.interpretability.endpoint import LongctxEndpoint
from fovea_lab.interpretability.needle_grid import NeedleGrid
from services.interpretability.tests.test_single_forward_experiments import ask
from shared.registry import CallContext


def test_hidden_heads_change_what_comes_back(context):
    plain = ask(NeedleGrid, context)
    hidden = ask(NeedleGrid, context, heads=[[l, h] for l in range(3) for h in range(4)])
    assert np.array(plain.grid("needle").values).shape == (2, 2)
    assert hidden.scalars["heads_hidden"].value == 12


def test_length_over_the_window_is_refused(context):
    assert ask(NeedleGrid, context, lengths=[3000]).field == "lengths"


def endpoint_that(answer):
    return LongctxEndpoint("http://model.test", "key", transport=httpx2.MockTransport(answer))


def test_method_is_asked_over_the_openai_protocol(context):
    asked = []

    def answer(request):
        asked.append(json.loads(request.content))
        return httpx2.Response(200, json={"choices": [{"message": {"content": "rent a blue rowing boat"}}]})

    study = NeedleGrid.load(context)
    study.endpoint = endpoint_that(answer)
    method = {"method": "duo", "plan": {"schema": "head-plan/1", "roles": [[1]]}}
    spec = study.In.model_validate({"lm": "tiny", "lengths": [600], "depths": [0], "longctx": method})
    (report,) = study.predict([spec], CallContext())
    assert 0.3 < report.scalars["recall"].value < 0.7
    assert (asked[0]["longctx"], asked[0]["temperature"]) == (method, 0)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda _: httpx2.Response(400, json={"error": {"message": "no such method"}}), BadInput),
        (lambda _: httpx2.Response(200, json={"nothing": 1}), BadInput),
        (lambda _: httpx2.Response(503, text="not yet"), NotReady),
    ],
)
def test_refusals_of_the_endpoint_are_passed_on(answer, error):
    with pytest.raises(error):
        endpoint_that(answer).chat("hello", max_tokens=3, longctx={"method": "duo"})


def test_endpoint_that_is_not_there_is_said_so():
    def gone(request):
        raise httpx2.ConnectError("refused")

    with pytest.raises(NotReady, match="No gateway answers"):
        endpoint_that(gone).chat("hello", max_tokens=3, longctx={})
