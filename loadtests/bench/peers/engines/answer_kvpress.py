"""Answers exported RULER-form samples under presses of kvpress (Apache-2.0), in an environment of its own.

`answer_kvpress.py MODEL SAMPLES.jsonl --out OUT.jsonl --press NAME:KEPT …`: our tokens on the same weights; a context
is read under the press, the question behind it, the answer is greedy. Scoring is left to whoever exported. Imports
nothing of ours.
"""

import argparse
import contextlib
import json
import time
from pathlib import Path

import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

PRESSES = {
    "knorm": kvpress.KnormPress,
    "snapkv": kvpress.SnapKVPress,
    "pyramidkv": kvpress.PyramidKVPress,
    "expected_attention": kvpress.ExpectedAttentionPress,
    "streamingllm": kvpress.StreamingLLMPress,
    "tova": kvpress.TOVAPress,
    "keydiff": kvpress.KeyDiffPress,
    "lagkv": kvpress.LagKVPress,
    "kvzip": kvpress.KVzipPress,
    "adakv": lambda compression_ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(compression_ratio)),
    "criticalkv": lambda compression_ratio: kvpress.CriticalKVPress(kvpress.SnapKVPress(compression_ratio)),
}


def main() -> None:
    """Answer what the output does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("samples", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--press", nargs="*", default=[], help="NAME:KEPT, for example snapkv:0.25; dense without")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(asked.threads)
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=getattr(torch, asked.dtype)).eval()
    samples = [json.loads(line) for line in asked.samples.read_text("utf8").splitlines()]
    done = set()
    if asked.out.is_file():
        rows = [json.loads(line) for line in asked.out.read_text("utf8").splitlines()]
        done = {(row["method"], row["budget"], row["digest"]) for row in rows}
    with asked.out.open("a", encoding="utf8") as out:
        for name in ("dense:1", *asked.press):
            method, _, kept = name.partition(":")
            budget = None if method == "dense" else float(kept)
            for sample in samples:
                if (f"kvpress {method}", budget, sample["digest"]) not in done:
                    out.write(json.dumps(answer(model, sample, method, budget)) + "\n")
                    out.flush()


@torch.inference_mode()
def answer(model: AutoModelForCausalLM, sample: dict, method: str, kept: float | None) -> dict:
    """One sample under one press."""
    begun, cache = time.perf_counter(), DynamicCache()
    press = contextlib.nullcontext() if kept is None else PRESSES[method](compression_ratio=1 - kept)(model)
    context = torch.tensor([sample["context_ids"]])
    with press:
        model.model(input_ids=context, past_key_values=cache)
    like = cache.layers[0].keys
    dense = len(cache.layers) * 2 * like.shape[1] * like.shape[3] * like.element_size() * context.shape[1]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    if kept is not None and held == dense:  # a press with budgets per head masks entries and frees nothing
        held = int(kept * dense)
    stop = model.generation_config.eos_token_id
    stop = set(stop if isinstance(stop, list) else [stop])
    ids, position, tokens = torch.tensor([sample["question_ids"]]), context.shape[1], []
    for _ in range(sample["max_new_tokens"]):
        at = torch.arange(position, position + ids.shape[1])[None]
        logits = model(ids, past_key_values=cache, position_ids=at, logits_to_keep=1).logits
        position += ids.shape[1]
        token = int(logits[0, -1].argmax())
        if token in stop:
            break
        tokens.append(token)
        ids = torch.tensor([[token]])
    return {
        **{name: sample[name] for name in ("digest", "task", "length", "index", "group", "references")},
        "method": f"kvpress {method}",
        "budget": kept,
        "protocol": "agnostic",
        "answer_ids": tokens,
        "tokens": len(tokens),
        "kv_bytes": held,
        "kv_bytes_dense": dense,
        "seconds": time.perf_counter() - begun,
    }


if __name__ == "__main__":
    main()
