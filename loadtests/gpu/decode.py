"""Decode steps of a decoder with random weights on a card, recorded and not, against vLLM where it is installed."""

import functools
import gc
import importlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from loadtests.gpu.cost_model import Step, step_seconds
from loadtests.gpu.timing import Row, guard, row_of
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.shapes import MODELS, ModelShape
from services.llm_longctx.kv_cache import CacheBits
from shared.lm.builders import llama
from shared.lm.decoder import Decoder

LLAMA = next(model for model in MODELS if model.name == "Llama-3-8B")
BATCH, CONTEXT = 32, 8192
_ANSWER = 64
_SPARE = 64
"""Entries per head beyond its answer: pages that are not full, and one that nobody reads."""


def make_decoder(shape: ModelShape, device: torch.device, dtype: torch.dtype, positions: int) -> Decoder:
    """A decoder with random weights, made where it runs."""
    with torch.device("meta"):
        model = llama(
            vocab=shape.vocab, width=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads,
            hidden=shape.hidden, positions=positions, head_dim=shape.head_dim,
        )  # fmt: skip
    model = model.to_empty(device=device).to(dtype)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    return model.eval().requires_grad_(requires_grad=False)


def time_decode(
    device: torch.device,
    card: GpuCard | None,
    shape: ModelShape = LLAMA,
    batch: int = BATCH,
    context: int = CONTEXT,
    dtype: torch.dtype = torch.bfloat16,
    backend: str = "auto",
) -> Iterator[Row]:
    """Yield steps of a batch, with whole entries and with entries of 4 bits; of fewer rows where memory lacks."""
    batch = fit_batch(device, shape, batch, context, dtype)
    name = f"{shape.name}, {batch} × {context:,}"
    yield from guard("decode", name, "ours", _time_ours(device, card, shape, batch, context, dtype, backend))
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # vLLM takes what is free
    yield from guard("decode", f"{name}, bf16", "vLLM", _time_vllm(shape, batch, context))


def fit_batch(device: torch.device, shape: ModelShape, batch: int, context: int, dtype: torch.dtype) -> int:
    """Halve a batch until the model and its entries fit into the free memory of a device."""
    if device.type != "cuda":
        return batch
    free = 0.85 * torch.cuda.mem_get_info(device)[0] - dtype.itemsize * (shape.parameters + shape.vocab * shape.width)
    while batch > 1 and batch * _entries(shape, context) * 2 * shape.head_dim * dtype.itemsize > free:
        batch //= 2
    return batch


def _entries(shape: ModelShape, context: int) -> int:
    return (context + _ANSWER + _SPARE) * shape.layers * shape.kv_heads


@torch.inference_mode()
def _time_ours(
    device: torch.device, card: GpuCard | None, shape: ModelShape, batch: int, context: int, dtype: torch.dtype,
    backend: str,
) -> Iterator[Row]:  # fmt: skip
    model = make_decoder(shape, device, dtype, 2 * context)
    cases: tuple[tuple[CacheBits | Literal[16], str], ...] = ((16, "bf16"), (4, "4-bit cache"))
    for bits, label in cases:
        # A device has no memory that costs nothing until it is touched: each kind of page takes what it may hold.
        room = batch * _entries(shape, context) * 2 * shape.head_dim * dtype.itemsize // (1 if bits == 16 else 2)
        engine = Engine(model, page=16, backend=backend, kv_bytes=room, cache_bits=bits)
        states = fill_states(engine, batch, context)
        name = f"{shape.name}, {batch} × {context:,}, {label}"
        computed = None if card is None else 1e3 * step_seconds(Step(shape, batch, context, 16, bits), card)
        step = functools.partial(engine.runner.decode, states, [1] * batch)
        if engine.runner.passes.graphs is not None:
            yield row_of("decode", name, "ours, recorded", step, device, computed_ms=computed)
            engine.runner.passes.graphs = None
        yield row_of("decode", name, "ours, step by step", step, device, computed_ms=computed)
        for state in states:
            state.close()
        del engine, states, step  # before the next one takes its memory


def fill_states(engine: Engine, batch: int, context: int) -> list[PagedState]:
    """Sequences that hold random entries, as if they had read so many tokens."""
    config, like = engine.model.config, engine.pool.keys
    states = [engine.runner.open(engine.policy) for _ in range(batch)]
    k = torch.randn(config.kv_heads, context, config.head_dim, dtype=like.dtype, device=like.device)
    for state in states:
        state.reserve(context, _ANSWER)
        for layer in range(config.layers):
            state.cache.append(layer, range(config.kv_heads), k, k)
            state.cache.end_chunk(layer)
        state.cache.length = context
    return states


def _time_vllm(shape: ModelShape, batch: int, context: int) -> Iterator[Row]:
    """A step of vLLM: an answer of some tokens, less one of a single token."""
    name = f"{shape.name}, {batch} × {context:,}, bf16"
    if importlib.util.find_spec("vllm") is None:
        yield Row("decode", name, "vLLM", note="it is not installed")
        return
    vllm: Any = importlib.import_module("vllm")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_config_of(shape)))
        engine = vllm.LLM(folder, load_format="dummy", skip_tokenizer_init=True, max_model_len=context + 2 * _ANSWER)
        prompts = [{"prompt_token_ids": [(7 * i + j) % shape.vocab for j in range(context)]} for i in range(batch)]
        seconds = []
        for tokens in (1, 1, 1 + _ANSWER):  # the first fills the prefix cache
            how = vllm.SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False, temperature=0)
            begun = time.perf_counter()
            engine.generate(prompts, how, use_tqdm=False)
            seconds.append(time.perf_counter() - begun)
    yield Row("decode", name, "vLLM", None, 1e3 * (seconds[2] - seconds[1]) / _ANSWER, f"version {vllm.__version__}")


def _config_of(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": shape.vocab,
        "hidden_size": shape.width, "intermediate_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "max_position_embeddings": 16384, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
