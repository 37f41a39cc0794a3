"""Kernels, recorded steps and a model on two GPUs, on a real card. Run by `make gpu`; a dry run has a processor."""

from contextlib import closing

import pytest
import torch

from services.llm_longctx.engine import Engine, Request
from services.llm_longctx.kernels.packed_pages import R3, R4
from services.llm_longctx.serving.local_models import make_local_model
from services.llm_longctx.tests.tiny_models import tiny_decoder, write_folder
from shared.registry import LoadContext
from tests.gpu import checks
from tests.gpu.conftest import DRY

pytestmark = pytest.mark.gpu

CARD = "cpu" if DRY else "cuda"
DTYPES = [torch.float32, torch.bfloat16]


KERNELS = [
    *((checks.check_decode, (dtype, (700, 0, 1, 5000, 16), 3, d)) for dtype in DTYPES for d in (64, 80, 96, 128, 256)),
    *((checks.check_prefill, (dtype, 1000, d)) for dtype in DTYPES for d in (64, 128, 256)),
    *((checks.check_merge, (dtype,)) for dtype in DTYPES),
    *((checks.check_sampling, (vocab,)) for vocab in (50, 128_256)),
]


@pytest.mark.parametrize(("check", "arguments"), KERNELS, ids=lambda one: getattr(one, "__name__", str(one)))
def test_kernels_agree_with_the_oracle(check, arguments):
    check(CARD, "triton", *arguments)


@pytest.mark.parametrize("bits", [16, 8, 4, R4, R3])
def test_recorded_steps_answer_as_a_cpu(bits):
    engine = checks.check_engine(lambda model: model.to(CARD), tiny_decoder(), "auto", bits, 12)
    assert DRY or len(engine.runner.passes.graphs) > 0, "nothing was recorded"


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="a model on two GPUs needs two")
def test_two_gpus_answer_as_one(tmp_path):
    ids = [(11 * i + i * i) % 250 for i in range(100)]
    asked = [Request(ids, max_tokens=6), Request(ids[:60], max_tokens=6)]
    wanted = [one.tokens for one in Engine(tiny_decoder()).generate(asked)]
    options = {"llm_weights": "fp32", "llm_tensor_parallel": "2"}
    place = LoadContext(cache=tmp_path / "cache", device="cuda", options=options)
    with closing(make_local_model(write_folder(tmp_path / "model")).load(place)) as together:
        assert [one.tokens for one in together.adapter.engine.generate(asked)] == wanted
