"""The engine of this repository: one request step by step without drafts, several by its scheduler."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from answer_loop import Generate, serve

from loadtests.bench.longctx import read
from services.llm_longctx.engine import Engine, Request
from services.llm_longctx.methods import AttentionMethod, method
from services.llm_longctx.serving.weight_format import load_weights


def load(options: dict[str, Any]) -> tuple[str, Generate]:
    """The GGUF file in a format of weights."""
    torch.set_num_threads(options["threads"])
    weights = load_weights(Path(options["gguf"]), Path(options["kept"]), options["weights"])
    engine = Engine(weights.model, packed=weights.packed, max_batch=16)

    @torch.inference_mode()
    def generate(
        prompts: list[list[int]], tokens: int, chosen: dict[str, Any]
    ) -> Generator[int, None, list[list[int]]]:
        knobs = dict(chosen)
        how = method(knobs.pop("method", "dense"), **knobs)
        yield 0
        return (yield from (_one(prompts[0], tokens, how) if len(prompts) == 1 else _several(prompts, tokens, how)))

    def _one(ids: list[int], tokens: int, how: AttentionMethod) -> Generator[int, None, list[list[int]]]:
        s = engine.open(how)
        said = [int(read(s, ids).argmax())]
        for _ in range(tokens - 1):
            yield 1
            said.append(int(s.step(said[-1]).argmax()))
        yield 1
        s.close()
        return [said]

    def _several(prompts: list[list[int]], tokens: int, how: AttentionMethod) -> Generator[int, None, list[list[int]]]:
        outputs = [engine.add_request(Request(ids, how, max_tokens=tokens)) for ids in prompts]
        known = 0
        while engine.scheduler.in_flight:
            engine.scheduler.step()
            now = sum(len(one.collector.tokens) for one in outputs)
            if now > known:
                known, came = now, now - known
                yield came
        return [one.collector.tokens for one in outputs]

    return f"ours, {weights.format}, {engine.kernels}", generate


if __name__ == "__main__":
    serve(load)
