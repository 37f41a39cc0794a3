"""vLLM on the CPU, its engine in this process and without prefix cache."""

import os
from collections.abc import Iterator
from typing import Any

from answer_loop import Generate, serve


def load(options: dict[str, Any]) -> tuple[str, Generate]:
    """The model of a folder in bfloat16."""
    cores = sorted(os.sched_getaffinity(0))[: options["threads"]]
    bound = f"{cores[0]}-{cores[-1]}" if len(cores) > 1 else str(cores[0])
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND=bound,
        VLLM_TARGET_DEVICE="cpu",
    )  # fmt: skip
    import vllm  # noqa: PLC0415  # reads the environment when imported

    engine = vllm.LLM(
        model=options["folder"],
        dtype="bfloat16",
        enforce_eager=options["eager"],
        max_model_len=8192,
        enable_prefix_caching=False,
    ).llm_engine
    last = 0

    def generate(prompts: list[list[int]], tokens: int, _method: dict[str, Any]) -> Iterator[int]:
        nonlocal last
        how = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        yield 0
        for ids in prompts:
            last += 1
            engine.add_request(str(last), {"prompt_token_ids": ids}, how)
        known = 0
        held: dict[str, int] = {}
        while engine.has_unfinished_requests():
            for out in engine.step():
                held[out.request_id] = len(out.outputs[0].token_ids)
            if (now := sum(held.values())) > known:
                known, came = now, now - known
                yield came

    return f"vLLM {vllm.__version__}, CPU, bf16", generate


if __name__ == "__main__":
    serve(load)
