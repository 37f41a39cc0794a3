"""Description of the routes, and the experiment on clusters of routing models."""

from fovea.errors import NotFound
from fovea_memory.experiments.routing_clusters import RoutingClusters
from fovea_memory.routes import documents, sessions
from services.llm_longctx.tests.test_state_loading import fields_of
from shared.registry import CallContext, LoadContext


def test_documents_are_affine_and_sessions_are_not():
    assert set(fields_of(documents, sessions)["affine"]) == {"/v1/documents/{document_id}"}


def test_a_model_that_does_not_route_is_refused(tmp_path):
    experiment = RoutingClusters.load(LoadContext(cache=tmp_path, weights=tmp_path, threads=1))
    request = experiment.example().model_copy(update={"lm": "smollm2"})
    (answer,) = experiment.predict([request], CallContext())
    assert isinstance(answer, NotFound)
