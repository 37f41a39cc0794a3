"""The tiny model of the examples, GPT-2 folders, and SmolLM2 where it is installed."""

import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from services.interpretability.core.experiment import Experiment
from services.interpretability.core.model_registry import TINY, ModelRegistry
from services.interpretability.core.report import Artefact, Report
from services.interpretability.routes import build_router
from shared.lm.bundled_models import SMOLLM2
from shared.registry import CallContext, LoadContext, servables
from shared.serving.build_app import build
from shared.settings import Settings
from shared.storage import ObjectStore
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


def ask(kind: type[Experiment[Any]], context: LoadContext, /, **options: Any) -> Report:
    """The report of an experiment's example with other options; refusals are raised."""
    (report,) = kind.load(context).predict([kind.In.model_validate({**kind.card.example, **options})], CallContext())
    if isinstance(report, Exception):
        raise report
    return report


def artefact(report: Report, name: str) -> Artefact:
    return next(one for one in report.artefacts if one.name == name)


def arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return dict(found)


def write_gpt2(folder: Path, sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """A GPT-2 as its users keep it: config, safetensors, and a tokenizer of its letters."""
    folder.mkdir(parents=True)
    names = {"vocab": "vocab_size", "positions": "n_positions", "width": "n_embd", "layers": "n_layer"}
    names |= {"heads": "n_head", "hidden": "n_inner"}
    facts = {"model_type": "gpt2", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
    config = facts | {theirs: sizes[ours] for ours, theirs in names.items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: x.contiguous() for key, x in weights.items()}, folder / "model.safetensors")
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())[: sizes["vocab"]])}
    library = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))


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
