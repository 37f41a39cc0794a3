"""Answers exported RULER-form samples by vLLM, dense, in an environment of its own: a check of our dense answers.

`answer_vllm.py MODEL SAMPLES.jsonl --out OUT.jsonl`: context and question are one prompt, the answer is greedy. Scoring
is left to whoever exported. Imports nothing of ours.
"""

import argparse
import json
import os
import time
from pathlib import Path


def main() -> None:
    """Answer what the output does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("samples", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    samples = [json.loads(line) for line in asked.samples.read_text("utf8").splitlines()]
    done = set()
    if asked.out.is_file():
        done = {json.loads(line)["digest"] for line in asked.out.read_text("utf8").splitlines()}
    if samples := [one for one in samples if one["digest"] not in done]:
        with asked.out.open("a", encoding="utf8") as out:
            for row in answer(asked.model, samples, asked.threads):
                out.write(json.dumps(row) + "\n")


def answer(model: str, samples: list[dict], threads: int) -> list[dict]:
    """All samples together, as vLLM schedules them."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_TARGET_DEVICE="cpu",
        VLLM_CPU_OMP_THREADS_BIND=f"{cores[0]}-{cores[-1]}" if len(cores) > 1 else str(cores[0]),
    )  # fmt: skip
    import vllm  # noqa: PLC0415  # reads the environment when imported

    engine = vllm.LLM(model=model, dtype="bfloat16", enforce_eager=True, max_model_len=8192)
    begun = time.perf_counter()
    found = engine.generate(
        [{"prompt_token_ids": one["context_ids"] + one["question_ids"]} for one in samples],
        [vllm.SamplingParams(temperature=0, max_tokens=one["max_new_tokens"]) for one in samples],
        use_tqdm=False,
    )
    seconds = (time.perf_counter() - begun) / len(samples)
    stop = engine.llm_engine.model_config.hf_config.eos_token_id
    stop = set(stop if isinstance(stop, list) else [stop])
    rows = []
    for sample, one in zip(samples, found, strict=True):
        tokens = [token for token in one.outputs[0].token_ids if token not in stop]
        facts = {name: sample[name] for name in ("digest", "task", "length", "index", "group", "references")}
        said = {"method": "vllm dense", "budget": None, "protocol": "agnostic", "seconds": seconds}
        # It says nothing of the bytes it held; dense holds all.
        rows.append({**facts, **said, "answer_ids": tokens, "tokens": len(tokens), "kv_bytes": 1, "kv_bytes_dense": 1})
    return rows


if __name__ == "__main__":
    main()
