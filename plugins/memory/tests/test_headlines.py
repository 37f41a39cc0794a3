"""Descriptions of models and routes, and the experiment on clusters of routing models."""

import pytest
from fastapi import FastAPI

from fovea.api.model import HeadlineMetric
from fovea.api.replica import route_fields
from fovea.errors import NotFound
from fovea_memory.experiments.routing_clusters import RoutingClusters
from fovea_memory.routes import documents, sessions
from shared.registry import CallContext, LoadContext, servables

NAMES = ["fovea-landmark-recall", *(f"fovea-titans-{layout}" for layout in ("lmm", "mac", "mag", "mal"))]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_on_made_data_is_called_synthetic(name):
    figures = [HeadlineMetric(one.name, 0.5, None, one.data) for one in servables("llm-longctx")[name].card.metrics]
    assert figures
    assert all(figure.is_synthetic for figure in figures)


def test_documents_are_affine_and_sessions_are_not():
    app = FastAPI()
    for module in (documents, sessions):
        app.include_router(module.router)
    found = route_fields(app.openapi(), lambda path: path.startswith("/v1"))
    assert set(found["affine"]) == {"/v1/documents/{document_id}"}


def test_a_model_that_does_not_route_is_refused(tmp_path):
    experiment = RoutingClusters.load(LoadContext(cache=tmp_path, weights=tmp_path, threads=1))
    request = experiment.example().model_copy(update={"lm": "smollm2"})
    (answer,) = experiment.predict([request], CallContext())
    assert isinstance(answer, NotFound)
