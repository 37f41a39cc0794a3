"""The experiment on clusters of routing models."""

import pytest

from fovea.errors import NotFound
from fovea_memory.experiments.routing_clusters import RoutingClusters
from shared.registry import CallContext, LoadContext


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studied")
    return RoutingClusters.load(LoadContext(cache=folder, weights=folder, threads=1))


def test_a_text_is_clustered_by_each_head_that_routes(experiment):
    (report,) = experiment.predict([experiment.example()], CallContext())
    assert report.tables
    assert report.manifest.model == "fovea-routing-bytes"


def test_a_model_that_does_not_route_is_refused(experiment):
    request = experiment.example().model_copy(update={"lm": "smollm2"})
    (answer,) = experiment.predict([request], CallContext())
    assert isinstance(answer, NotFound)
