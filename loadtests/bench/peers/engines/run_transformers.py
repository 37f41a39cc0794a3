"""Transformers, step by step, in the project's own environment."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from answer_loop import Generate, serve


def load(options: dict[str, Any]) -> tuple[str, Generate]:
    """The model of a folder in bfloat16."""
    torch.set_num_threads(options["threads"])
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        options["folder"], dtype=torch.bfloat16, attn_implementation=options["attention"]
    ).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int, _method: dict[str, Any]) -> Iterator[int]:
        yield 0
        ids, cache = torch.tensor(prompts), None
        for _ in range(tokens):
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            yield len(prompts)

    return f"transformers {transformers.__version__}, torch {torch.__version__}, bf16", generate


if __name__ == "__main__":
    serve(load)
