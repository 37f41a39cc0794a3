"""llama.cpp through the low-level binding of llama-cpp-python: continuous batches, a context per call."""

from collections.abc import Generator, Sequence
from importlib.metadata import version
from typing import Any

import llama_cpp as lc
import numpy as np
from answer_loop import Generate, serve

CHUNK = 512


def load(options: dict[str, Any]) -> tuple[str, Generate]:
    """The GGUF file as it is."""
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(options["gguf"].encode(), lc.llama_model_default_params())
    vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))

    def generate(
        prompts: list[list[int]], tokens: int, _method: dict[str, Any]
    ) -> Generator[int, None, list[list[int]]]:
        context = _open(model, len(prompts), len(prompts[0]) + tokens, options["threads"], flash=options["flash"])
        batch = lc.llama_batch_init(CHUNK, 0, 1)
        try:
            yield 0
            fed = [_read(context, batch, s, ids, vocab) for s, ids in enumerate(prompts)]
            said = [[token] for token in fed]
            yield len(prompts)
            for at in range(len(prompts[0]), len(prompts[0]) + tokens - 1):
                _decode(context, batch, [(token, at, s, True) for s, token in enumerate(fed)])
                fed = [_best(context, s, vocab) for s in range(len(prompts))]
                for answer, token in zip(said, fed, strict=True):
                    answer.append(token)
                yield len(prompts)
            return said
        finally:
            lc.llama_batch_free(batch)
            lc.llama_free(context)

    has = lc.llama_print_system_info().decode()
    parts = [part.strip() for part in has.replace("CPU :", "|").split("|")]
    has = " ".join(p.removesuffix(" = 1") for p in parts if p.endswith("= 1") and p.startswith(("AVX", "AMX")))
    return f"llama.cpp of llama-cpp-python {version('llama-cpp-python')}, built here with GGML_NATIVE: {has}", generate


def _open(model: Any, sequences: int, length: int, threads: int, *, flash: bool) -> Any:
    params = lc.llama_context_default_params()
    params.n_seq_max, params.n_ctx = sequences, sequences * (-(-length // 256) * 256)
    params.n_batch = params.n_ubatch = CHUNK
    params.n_threads = params.n_threads_batch = threads
    params.no_perf = True
    params.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return lc.llama_init_from_model(model, params)


def _read(context: Any, batch: Any, sequence: int, ids: Sequence[int], vocab: int) -> int:
    for begin in range(0, len(ids), CHUNK):
        chunk = ids[begin : begin + CHUNK]
        _decode(context, batch, [(t, begin + i, sequence, begin + i == len(ids) - 1) for i, t in enumerate(chunk)])
    return _best(context, -1, vocab)


def _decode(context: Any, batch: Any, rows: Sequence[tuple[int, int, int, bool]]) -> None:
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
    if lc.llama_decode(context, batch):
        raise RuntimeError("llama_decode failed")


def _best(context: Any, row: int, vocab: int) -> int:
    return int(np.ctypeslib.as_array(lc.llama_get_logits_ith(context, row), (vocab,)).argmax())


if __name__ == "__main__":
    serve(load)
