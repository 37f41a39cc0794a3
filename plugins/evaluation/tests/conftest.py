"""Golden data of systems and collections, and a judge that reads by rule."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.tests.conftest import released, serve_judges  # noqa: F401  # fixture
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    return lambda path: json.loads((GOLDEN / path).read_text())


def say(body: dict[str, Any]) -> str:
    """Rules of a model that reads: facts by lines, support by words, and always A."""
    if "List the facts" in (text := body["messages"][-1]["content"]):
        return "vital: The moon pulls the oceans.\nokay: The sun helps.\nnonsense\nvital:\n"
    if "Reply with one word" not in text:
        return "A"
    source = text.split("<<answer" if "<<answer" in text else "<<source")[1].split("<<end")[0]
    claim = text.split("<<fact" if "<<fact" in text else "<<claim")[1].split("<<end")[0]
    return "support" if "moon" in claim and "moon" in source else "none"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    kinds = {"query-likelihood": answered_by(FakeModel(say), QueryLikelihood)}
    with serve_judges(tmp_path_factory.mktemp("fovea"), kinds) as made:
        yield made
