"""The tiny models with golden numbers, the tiny model of the examples, and SmolLM2 where it is installed."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from services.interpretability.core.model_registry import TINY, ModelRegistry
from services.interpretability.routes import build_router
from shared.lm import builders
from shared.lm.bundled_models import SMOLLM2
from shared.lm.decoder import Decoder
from shared.registry import LoadContext, servables
from shared.serving.build_app import build
from shared.settings import Settings
from shared.storage import ObjectStore
from tests.golden import read_golden
from tests.harness.language_model import share_language_model
from tests.harness.public_rule import one_thread  # noqa: F401  # fixture

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS = Path(__file__).parents[3] / "shared/lm/tests/golden"
"""Weights of tiny models, which the tests of `shared.lm` read too."""


@asynccontextmanager
async def probing(data: Path) -> AsyncIterator[httpx2.AsyncClient]:
    found = servables("interpretability")
    settings = Settings(data_dir=data, intra_op_threads=1)
    app = build("interpretability", routers=[build_router(found)], servables=found, settings=settings)
    await app.state.host.start()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://probe.test") as client:
        yield client
    await app.state.host.stop()


def read(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


@dataclass(frozen=True)
class Golden:
    """A tiny model with everything that is known about it."""

    family: str
    model: Decoder = field(repr=False)
    facts: dict[str, Any] = field(repr=False)
    extra: dict[str, Any] = field(repr=False)
    clean: Tensor = field(repr=False)
    corrupt: Tensor = field(repr=False)
    answers: Tensor = field(repr=False)
    """Correct and wrong [B,2]; prompts are [B,T]."""

    @property
    def given(self) -> tuple[Decoder, Tensor, Tensor, Tensor]:
        """Input of measurements: the model, both prompts and the answers."""
        return self.model, self.clean, self.corrupt, self.answers


def load_golden(family: str) -> Golden:
    facts = read(f"tiny_{family}_circuit.json")
    model = getattr(builders, facts["network"]["name"])(**facts["network"]["config"]).eval()
    weights = read_golden(WEIGHTS / f"tiny_{family}_weights.arrays")
    model.load_state_dict({key: torch.from_numpy(weights[key]) for key in weights}, strict=False)
    ids = (torch.tensor(facts[name]) for name in ("clean_ids", "corrupt_ids", "answer_ids_correct_wrong"))
    return Golden(family, model, facts, read(f"tiny_{family}_extra.json"), *ids)


def write_gpt2(folder: Path, facts: dict[str, Any], weights: dict[str, Tensor], letters: int = 256) -> Path:
    """A GPT-2 as its users keep it: config, safetensors, and a tokenizer of so many letters."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **facts}))
    save_file({key: x.contiguous() for key, x in weights.items()}, folder / "model.safetensors")
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())[:letters])}
    library = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def golden(request):
    return load_golden(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return ModelRegistry(tmp_path_factory.mktemp("cache"), Path("nowhere"), TINY, "float32", "cpu").get(TINY)


@pytest.fixture
def context(tmp_path):
    objects = ObjectStore.open((tmp_path / "objects").as_uri())
    return LoadContext(cache=tmp_path / "cache", weights=tmp_path / "weights", threads=1, objects=objects)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    folder = share_language_model(tmp_path_factory.mktemp("smollm2"))
    return ModelRegistry(folder, Path("nowhere"), SMOLLM2, "float32", "cpu").get(SMOLLM2)
