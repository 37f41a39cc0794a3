"""schemathesis over the routes of judges: whatever their document allows is answered, and nothing is a server error.

The language model is a stand-in that answers at once, so that no deadline ends a request.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from schemathesis.checks import not_a_server_error

from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.routes import router
from services.relevance_judge.tests.fake_endpoint import FakeModel
from shared.registry import LoadContext
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.hypothesis_profiles import fewer


class Judge(QueryLikelihood):
    """The default judge with a model that always says A."""

    card = QueryLikelihood.card

    @classmethod
    def load(cls, context: LoadContext):
        """Load nothing."""
        return cls(FakeModel(lambda _: "A").client())


def build_app(folder: Path):
    settings = Settings(_env_file=None, data_dir=folder, shutdown_grace_s=1)
    return build("relevance-judge", routers=[router], servables={"query-likelihood": Judge}, settings=settings)


DOCUMENT = build_app(Path("unused")).openapi()
OPERATIONS = {
    operation.label: operation
    for operation in (result.ok() for result in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
    if operation.path.startswith("/v1/judge")
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    app = build_app(tmp_path_factory.mktemp("fovea"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not (server.started and app.state.host.ready):
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_that_the_document_allows_is_a_server_error(label, url):
    @examples(max_examples=fewer(5), suppress_health_check=list(HealthCheck), database=None)
    @given(case=OPERATIONS[label].as_strategy())
    def fuzz(case):
        case.call_and_validate(base_url=url, checks=[not_a_server_error], timeout=60)

    fuzz()
