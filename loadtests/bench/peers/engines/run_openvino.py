"""OpenVINO GenAI's continuous batching; the folder is converted by Optimum Intel the first time and kept."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from answer_loop import Generate, serve


def load(options: dict[str, Any]) -> tuple[str, Generate]:
    """The converted model in the asked format of weights: int4, or fp16, which runs in the processor's 16 bits."""
    folder = _convert(Path(options["folder"]), Path(options["kept"]), options["weights"])
    scheduling = genai.SchedulerConfig()
    scheduling.cache_size, scheduling.enable_prefix_caching, scheduling.max_num_batched_tokens = 1, False, 512
    properties = {"INFERENCE_NUM_THREADS": options["threads"], **options.get("properties", {})}
    pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduling, "CPU", properties)
    last = 0

    def generate(prompts: list[list[int]], tokens: int, _method: dict[str, Any]) -> Iterator[int]:
        nonlocal last
        how = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        yield 0
        handles = []
        for ids in prompts:
            last += 1
            handles.append(pipeline.add_request(last, openvino.Tensor(np.array([ids], np.int64)), how))
        while pipeline.has_non_finished_requests():
            pipeline.step()
            if count := sum(_read(handle) for handle in handles):
                yield count

    return f"OpenVINO GenAI {genai.__version__.split('-')[0]}, {options['weights']}", generate


def _read(handle: Any) -> int:
    return sum(len(one.generated_ids) for one in handle.read().values()) if handle.can_read() else 0


def _convert(folder: Path, kept: Path, weights: str) -> Path:
    if not (kept / "openvino_model.xml").is_file():
        command = [Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", folder]
        command += ["--task", "text-generation-with-past", "--weight-format", weights]
        # Groups of 128, the default, do not divide the width of 576.
        command += ["--group-size", "64"] if weights == "int4" else []
        command.append(kept)
        subprocess.run(command, check=True, stdout=sys.stderr)
    return kept


if __name__ == "__main__":
    serve(load)
