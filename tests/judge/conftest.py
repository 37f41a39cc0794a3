"""The gateway in front of the real relevance-judge, whose language model answers by rule: no weights, no network."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.gateway.tests.stage import fronted
from services.relevance_judge.metrics.baselines import overlap
from services.relevance_judge.routes import router
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.registry.discovery import servables
from shared.serving.build_app import build
from shared.settings import Settings


def by_overlap(body: dict[str, Any]) -> str:
    """Grades by the words that query and passage share, like a model that reads quickly."""
    parts = (body["messages"][-1]["content"].split(f"<<{name} ")[1] for name in ("query", "passage"))
    query, passage = (part.split("\n", 1)[1].split("\n<<end")[0] for part in parts)
    return f"Most words are there.\n##final score: {min(int(overlap(query, {'p': passage})['p'] * 4), 3)}"


@pytest.fixture(scope="module")
def judging(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("judging"), FakeModel(by_overlap)

    kinds = {name: answered_by(model, kind) for name, kind in servables("relevance-judge").items()}
    ordered = {"prompted-grade": kinds["prompted-grade"], **kinds}
    settings = Settings(_env_file=None, data_dir=folder)
    app = build("relevance-judge", routers=[router], servables=ordered, settings=settings)
    with fronted(app, "relevance-judge", folder) as (url, _, _):
        yield SimpleNamespace(url=url, model=model)


@pytest.fixture
def url(judging):
    return judging.url


@pytest.fixture(scope="session")
def files():
    return load_mini_collection().folder
