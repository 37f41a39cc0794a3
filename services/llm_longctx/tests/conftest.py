"""A tiny model in a folder, served by the real app under uvicorn: what every test here talks to."""

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import httpx2
import openai
import pytest
import torch

from services.llm_longctx.api import embeddings, methods
from services.llm_longctx.api import openai as routes
from services.llm_longctx.engine import Engine
from services.llm_longctx.kernels.native import bindings, isa_targets
from services.llm_longctx.models.smollm2 import SmolLM2
from services.llm_longctx.serving.grammars.token_grammar import GrammarCompiler
from services.llm_longctx.serving.local_models import make_local_model
from services.llm_longctx.tests.interpreted import interpreted
from services.llm_longctx.tests.tiny_models import tiny_decoder, write_folder
from shared.lm.bundled_models import SMOLLM2
from shared.lm.tokenizer import Tokenizer
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.language_model import share_language_model
from tests.harness.public_rule import one_thread  # noqa: F401  # fixture
from tests.harness.serving import is_loaded, serve_in_thread

BUILT = [t for t in isa_targets.runnable_targets(bindings._processor()) if isa_targets.library_file(t).exists()]
native = pytest.mark.skipif(not BUILT, reason="no C++ kernels are built here")

# Triton settles what its own library is compiled to when it is imported first: here, to Python.
os.environ["TRITON_INTERPRET"] = "1"

MODEL = "tiny-llama"
HELLO = [{"role": "user", "content": "Hello, who are you?"}]


@contextmanager
def torch_threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_only(target, monkeypatch) -> None:
    found = (bindings.open_library(isa_targets.library_file(target)), target.name)
    monkeypatch.setattr(bindings, "load_library", lambda: found)


@pytest.fixture(params=BUILT, ids=lambda target: target.name)
def native_level(request, monkeypatch):
    load_only(request.param, monkeypatch)


@pytest.fixture(params=[*BUILT, "triton"], ids=lambda target: getattr(target, "name", "triton"))
def level(request, monkeypatch):
    """Each level of instructions, and Triton's interpreter; gives the name of their back end."""
    if request.param != "triton":
        load_only(request.param, monkeypatch)
        yield "cpu_ext"
        return
    pytest.importorskip("triton", reason="triton is not installed: its wheels are for Linux")
    with interpreted():
        yield "triton"


@pytest.fixture
def interpreter():
    with interpreted():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "Tiny Llama")


@pytest.fixture(scope="session")
def codec(folder):
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="session")
def compiler(codec):
    return GrammarCompiler(codec, 272)


@pytest.fixture(scope="session")
def decoder():
    return tiny_decoder()


@pytest.fixture(scope="session")
def tiny():
    return tiny_decoder().double()


@pytest.fixture
def engine(decoder):
    made = Engine(decoder).scheduler
    yield made
    made.close()


class Server(ExitStack):
    """An app under uvicorn in a thread, on a free port, and clients of it and of OpenAI's routes."""

    def __init__(self, app) -> None:
        super().__init__()
        self.app = app

    def __enter__(self) -> Self:
        self.url = self.enter_context(serve_in_thread(self.app, is_loaded))
        self.http = self.enter_context(httpx2.Client(base_url=self.url, timeout=60))
        self.client = self.enter_context(openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0))
        return self


def app_of(path: Path, tmp: Path, *routers, also: dict[str, type] | None = None, **settings):
    model = make_local_model(path)
    servables, given = {model.card.name: model, **(also or {})}, {"data_dir": tmp, "intra_op_threads": 1, **settings}
    given = Settings(_env_file=None, **given)
    return build("llm-longctx", routers=[routes.router, *routers], servables=servables, settings=given)


def smollm2_app(tmp: Path, *routers):
    settings = Settings(data_dir=tmp, intra_op_threads=1, llm_weights="fp32")
    share_language_model(settings.cache_dir)
    return build("llm-longctx", routers=[routes.router, *routers], servables={SMOLLM2: SmolLM2}, settings=settings)


@pytest.fixture(scope="session")
def server(folder, tmp_path_factory):
    app = app_of(folder, tmp_path_factory.mktemp("data"), embeddings.router, methods.router)
    with Server(app) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.client


@pytest.fixture(scope="session")
def roomy(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("roomy") / "Tiny Llama", positions=2048)
    with Server(app_of(folder, tmp_path_factory.mktemp("data"))) as server:
        yield server.client


def say(client, **more):
    asked = {"model": MODEL, "messages": HELLO, "max_tokens": 16, "temperature": 0}
    return client.chat.completions.create(**asked | more)


def text_of(client, **more) -> str:
    return say(client, **more).choices[0].message.content


def go_on(client, prompt="Once upon", **more):
    return client.completions.create(**{"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0} | more)


class Ear:
    def __init__(self, stop_at=None) -> None:
        self.tokens, self.prompted, self.captured, self.ends, self.stop_at = [], [], [], [], stop_at

    def on_prompt(self, tokens):
        self.prompted += tokens

    def on_capture(self, captured):
        self.captured += captured

    def on_token(self, token):
        self.tokens.append(token)
        return token.id == self.stop_at

    def on_finish(self, reason, produced):
        self.ends.append((reason, produced))

    @property
    def ids(self):
        return [t.id for t in self.tokens]

    @property
    def reason(self):
        ((reason, _),) = self.ends
        return reason


def most_running(scheduler):
    """Step until all have ended; how many ran at once."""
    most = 0
    while scheduler.in_flight:
        scheduler.step()
        most = max(most, len(scheduler.running))
    return most
