"""A tiny model in a folder, served by the real app under uvicorn: what every test here talks to."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import openai
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from services.llm_longctx.api import openai as routes
from services.llm_longctx.engine import Engine
from services.llm_longctx.models.smollm2 import SmolLM2
from services.llm_longctx.serving.grammars.token_grammar import GrammarCompiler
from services.llm_longctx.serving.local_models import make_local_model
from shared.lm.builders import llama
from shared.lm.bundled_models import SMOLLM2
from shared.lm.decoder import Decoder
from shared.lm.tokenizer import Tokenizer
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.language_model import share_language_model
from tests.harness.serving import is_loaded, serve_in_thread

# Triton settles what its own library is compiled to when it is imported first: here, to Python.
os.environ["TRITON_INTERPRET"] = "1"

CONTEXT = 192
MODEL = "tiny-llama"
HELLO = [{"role": "user", "content": "Hello, who are you?"}]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


def tiny_decoder(seed: int = 3, positions: int = CONTEXT) -> Decoder:
    """A random Llama that says varied things: its logits are wide, and no end token is likely."""
    torch.manual_seed(seed)
    model = llama(
        vocab=272, width=32, layers=2, heads=4, kv_heads=2, hidden=48, positions=positions, norm_eps=1e-5, tied=False
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.6 / parameter.shape[1] ** 0.25)
        model.lm_head.weight[256:] *= 0.05
    return model.requires_grad_(requires_grad=False)


def write_folder(folder: Path, *, template: str | None = CHAT, positions: int = CONTEXT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: x.contiguous() for k, x in tiny_decoder().state_dict().items()}, folder / "model.safetensors")
    facts = {
        "model_type": "llama", "vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "rope_theta": 10000.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(facts))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": template}))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


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
    """An app under uvicorn in a thread, on a free port."""

    def __init__(self, app) -> None:
        super().__init__()
        self.app = app

    def __enter__(self) -> Self:
        self.url = self.enter_context(serve_in_thread(self.app, is_loaded))
        return self


def app_of(path: Path, tmp: Path, *routers, also: dict[str, type] | None = None, **settings):
    """The app that serves the model at `path`, with OpenAI's routes and others."""
    model = make_local_model(path)
    return build(
        "llm-longctx",
        routers=[routes.router, *routers],
        servables={model.card.name: model, **(also or {})},
        settings=Settings(_env_file=None, data_dir=tmp, intra_op_threads=1, **settings),
    )


def smollm2_app(tmp: Path, *routers):
    settings = Settings(data_dir=tmp, intra_op_threads=1, llm_weights="fp32")
    share_language_model(settings.cache_dir)
    return build("llm-longctx", routers=[routes.router, *routers], servables={SMOLLM2: SmolLM2}, settings=settings)


@pytest.fixture(scope="session")
def server(folder, tmp_path_factory):
    with Server(app_of(folder, tmp_path_factory.mktemp("data"))) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def roomy(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("roomy") / "Tiny Llama", positions=2048)
    with (
        Server(app_of(folder, tmp_path_factory.mktemp("data"))) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def say(client, **more):
    return client.chat.completions.create(
        **{"model": MODEL, "messages": HELLO, "max_tokens": 16, "temperature": 0} | more
    )


def text_of(client, **more) -> str:
    return say(client, **more).choices[0].message.content


def go_on(client, prompt="Once upon", **more):
    return client.completions.create(**{"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0} | more)


class Ear:
    """A listener that remembers; see `tests.hooks`."""

    def __init__(self, stop_at=None) -> None:
        self.tokens, self.prompted, self.ends, self.stop_at = [], [], [], stop_at

    def on_prompt(self, tokens):
        self.prompted += tokens

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
