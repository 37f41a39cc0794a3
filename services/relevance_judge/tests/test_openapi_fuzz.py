"""schemathesis over the routes of judges: whatever their document allows is answered, and nothing is a server error.

The language model is a stand-in that answers at once, so that no deadline ends a request.
"""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from schemathesis.checks import not_a_server_error

from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.routes import router
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.hypothesis_profiles import fewer
from tests.harness.serving import is_loaded, serve_in_thread

JUDGE = answered_by(FakeModel(lambda _: "A"), QueryLikelihood)


def build_app(folder: Path):
    settings = Settings(_env_file=None, data_dir=folder, shutdown_grace_s=1)
    return build("relevance-judge", routers=[router], servables={"query-likelihood": JUDGE}, settings=settings)


DOCUMENT = build_app(Path("unused")).openapi()
OPERATIONS = {
    operation.label: operation
    for operation in (result.ok() for result in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
    if operation.path.startswith("/v1/judge")
}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serve_in_thread(build_app(tmp_path_factory.mktemp("fovea")), is_loaded) as served:
        yield served


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_that_the_document_allows_is_a_server_error(label, url):
    @examples(max_examples=fewer(5), suppress_health_check=list(HealthCheck), database=None)
    @given(case=OPERATIONS[label].as_strategy())
    def fuzz(case):
        case.call_and_validate(base_url=url, checks=[not_a_server_error], timeout=60)

    fuzz()
