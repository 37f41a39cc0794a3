"""A gateway on a socket, and behind it a tiny random language model, the embedding model and the rerankers.

Output of a random model under a grammar is valid; its free output is noise. So these tests show that a
client understands our answers, not that the answers are good.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn

from fovea_messages.routes import router as messages
from fovea_responses.routes import router as responses
from loadtests.bench.peers.environment import PeerMissing, prepare_environment
from services.gateway.app import build_gateway
from services.gateway.server import create_server
from services.llm_longctx.api import embeddings, openai
from services.llm_longctx.models.all_minilm import AllMiniLM
from services.llm_longctx.serving.local_models import make_local_model
from services.llm_longctx.tests.conftest import MODEL, write_folder
from services.relevance_judge.routes import rerank
from shared.lm.bundled_models import MINILM
from shared.registry.discovery import servables
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.serving import is_loaded, run_server, serve_in_thread
from tests.harness.waiting import wait_until

ROOMS = Path.home() / ".cache/fovea/clients"

OFFLINE = os.environ | {
    "HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1",
}  # fmt: skip
"""Variables under which clients do not look for a hub."""


def environment(name: str, requirements: Path) -> Path:
    """The interpreter of a client's environment; the test is skipped where pip can't install it."""
    try:
        return prepare_environment(name, requirements, ROOMS)
    except PeerMissing as error:
        pytest.skip(str(error))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@contextlib.contextmanager
def listening(server: uvicorn.Server, ready: str) -> Iterator[str]:
    """A server in a thread: its address, once it says that it is ready."""
    with run_server(server) as url:
        wait_until(lambda: httpx2.get(f"{url}{ready}").status_code == 200, 120, f"{ready} of the server")
        yield url


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The tiny model's folder; clients that count tokens read its tokenizer."""
    folder = write_folder(tmp_path_factory.mktemp("clients") / "Tiny Llama")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.0}))
    return folder


@pytest.fixture(scope="session")
def url(tmp_path_factory, folder):
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), intra_op_threads=1)
    llm = build(
        "llm-longctx", routers=[openai.router, embeddings.router, messages, responses],
        servables={MODEL: make_local_model(folder), MINILM: AllMiniLM}, settings=settings,
    )  # fmt: skip
    judges = {"query-likelihood": servables("relevance-judge")["query-likelihood"]}
    judge = build("relevance-judge", routers=[rerank.router], servables=judges, settings=settings)
    with serve_in_thread(llm, is_loaded) as llm_url, serve_in_thread(judge, is_loaded) as judge_url:
        upstreams = f"llm-longctx={llm_url},relevance-judge={judge_url}"
        data = tmp_path_factory.mktemp("gateway")
        front = Settings(data_dir=data, http_port=0, grpc_port=0, static_upstreams=upstreams)
        with listening(create_server(build_gateway(front), front), "/health") as found:
            for place in (f"{found}/v1/chat/completions", f"{found}/v2/rerank"):
                wait_until(lambda at=place: httpx2.post(at, json={}).status_code != 404, 120, f"an answer of {place}")
            yield found
