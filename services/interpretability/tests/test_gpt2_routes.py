"""A GPT-2 folder under the weights folder, over HTTP: all that studies language models answers for it."""

import numpy as np
import pytest
import pytest_asyncio
import torch

from services.interpretability.attention.retrieval_score import retrieval_score
from services.interpretability.core.model_registry import ModelRegistry
from services.interpretability.experiments.retrieval_heads import RetrievalHeadsSpec
from services.interpretability.experiments.retrieval_heads.spec import draw_samples
from services.interpretability.tests.conftest import probing, write_gpt2
from shared.lm.builders import gpt2
from shared.lm.taps import trace
from shared.registry import servables
from tests.harness.models import ok

NAME = "gpt2-of-mine"
LAYERS, HEADS, POSITIONS = 3, 4, 1024
OWN = {"routing-clusters", "deconstruction-study", "sparsity"}
"""Experiments on models of their own."""

KV = {"protocol": "kv", "samples": 2, "pairs": 3, "shots": 1, "key_chars": 4, "value_words": 0}


def random_folder(folder):
    torch.manual_seed(5)
    sizes = {"vocab": 256, "width": 32, "layers": LAYERS, "heads": HEADS, "hidden": 64, "positions": POSITIONS}
    model = gpt2(**sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[1] ** 0.5)
    write_gpt2(folder, sizes, {key: x for key, x in model.state_dict().items() if key != "lm_head.weight"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    random_folder(folder / "weights" / NAME)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(data):
    async with probing(data) as asked:
        yield asked


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_retrieval_heads_are_those_of_its_own_pattern_rows(client, data):
    report = ok(await client.post("/v1/probe/heads/retrieval", json={"model": NAME, "seed": 3, **KV}))
    assert report["manifest"]["model"] == NAME
    assert any("does not solve the task" in warning for warning in report["warnings"]), "random weights know nothing"
    subject = ModelRegistry(data, data / "weights", NAME, "float32", "cpu").get(NAME)
    names, expected = [f"pattern.{i}" for i in range(LAYERS)], []
    for sample in draw_samples(RetrievalHeadsSpec(seed=3, **KV), subject):
        read, said = sample.prompt.ids, sample.prompt.answer_ids
        seen = trace(subject.model, torch.tensor([[*read, *said[:-1]]]), capture=names)
        rows = torch.stack([seen[name][0] for name in names]).permute(2, 0, 1, 3)
        expected.append(retrieval_score(rows[len(read) - 1 :].numpy(), read, said, sample.prompt.span))
    grid = next(grid for grid in report["grids"] if grid["name"] == "retrieval_score")
    assert np.max(expected) > 0, "else nothing would be compared"
    assert np.allclose(grid["values"], np.mean(expected, 0))
    plan = next(one for one in report["artefacts"] if one["name"] == "head-plan.json")
    roles = (await client.get(f"/v1/probe/artefacts/{plan['sha256']}")).json()["roles"]
    assert (np.array(roles).shape, np.sum(roles)) == ((LAYERS, HEADS), LAYERS * HEADS / 2)


@pytest.mark.parametrize("name", [name for name in servables("interpretability") if name not in OWN])
async def test_experiment_answers_its_example_for_it(client, name):
    kind = servables("interpretability")[name]
    example = {**kind.card.example, "model": NAME}
    del example["lm"]
    assert ok(await client.post(f"/v1/probe/{kind.route}", json=example))["manifest"]["model"] == NAME
