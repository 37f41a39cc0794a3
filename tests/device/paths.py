"""Methods and the paths that a device's steps take, as the tests of this folder run them, for the documentation.

Knows methods, and the parameters of the tests. Knows nothing about engines.
"""

from collections.abc import Iterator

from services.llm_longctx.engine.device.parallel_backend import DIVISIBLE
from services.llm_longctx.methods import AttentionMethod, method, methods

FEW_BITS = (4, 68)  # types of older entries (q4, r4) that every method is run with, next to whole ones

TRITON = (("dense", 16), ("duo", 16), ("razor", 16), ("dense", 8), ("tova", 4), ("duo", 68))
"""Methods and bits whose steps run Triton's kernels, interpreted."""

RECORDED = (("duo", 16), ("dense", 4), ("dense", 67))
"""Methods and bits whose recorded steps run Triton's kernels, too."""


def knobs_of(name: str) -> list[dict]:
    """Each set of options that a method is tested with."""
    named = methods()[name].contract_knobs
    return [dict(named)] if hasattr(named, "keys") else [dict(one) for one in named]


def waits(how: AttentionMethod, number: int) -> bool:
    """Whether the host must know what a step found: how many entries a cut leaves, or whether queries are alike."""
    every, similarity = getattr(how, "every", None), getattr(how, "similarity", None)
    return (every is not None and number % every == 0) or similarity is not None


def is_recorded(how: AttentionMethod) -> bool:
    """Whether its steps are recorded: it neither chooses what a step reads, nor changes outputs, nor sees inputs."""
    looks_on = how.overrides("after_decode") and "hidden" in how.needs
    return not (how.overrides("decode_plan") or how.overrides("epilogue") or looks_on)


def render_page() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from (
        "# Methods on a GPU",
        "",
        "Generated from `tests/device`, which runs on a pretended device: tensors on the wrong device, hidden copies",
        "and waits in a step are faults. **No GPU has run any of this yet.** Each method runs one prefill and four",
        "steps with each of its option sets over whole entries, and with the first over q4 and r4, and answers as on a",
        "CPU (`test_engine.py`).",
        "",
        "* **whole, q4, r4**: types of older entries.",
        "* **recorded**: steps are replayed as CUDA graphs, and replays answer as plain steps (`test_graph_steps.py`).",
        "  Steps of other methods run as they are: these choose what a step reads, change outputs or see inputs.",
        "* **host waits**: in which steps the host must read a number from the device; in no others.",
        "* **Triton**: types with which kernels run in Triton's interpreter, in plain or recorded steps. The kernels",
        "  have tests of their own against a float64 reference.",
        "* **several GPUs**: two processes answer as one (`test_tensor_parallel.py`).",
        "",
        "| method | whole, q4, r4 | recorded | host waits | Triton | several GPUs |",
        "|---|---|---|---|---|---|",
    )
    for name in sorted(methods()):
        kinds = [method(name, **knobs) for knobs in knobs_of(name)]
        recorded = {is_recorded(how) for how in kinds}
        cells = (
            f"`{name}`",
            f"yes, {len(kinds)} option set{'s' if len(kinds) > 1 else ''}",
            "yes" if recorded == {True} else "no" if recorded == {False} else "some option sets",
            _waiting(kinds),
            ", ".join(dict.fromkeys(_type(bits) for one, bits in (*TRITON, *RECORDED) if one == name)) or "–",
            "yes" if name in DIVISIBLE else "refused",
        )
        yield "| " + " | ".join(cells) + " |"
    yield from (
        "", "| also on the pretended device | test |", "|---|---|",
        "| Llama, Qwen2, Gemma3 and GPT-2, batched | `test_serving.py` |",
        "| every sampling option, one copy in and one read per step | `test_serving.py` |",
        "| cached prefixes, forks, scored prompts, 16 and 8 bits | `test_serving.py` |",
        "| interventions and captures (activations, attention, lens), 16 and 8 bits | `test_serving.py` |",
        "| weights of 8 and 4 bits, and FP8 | `test_triton.py`, `test_weight_format.py` |",
        "| every study, and every vision model in PyTorch | `test_studies.py` |",
    )  # fmt: skip


def _type(bits: int) -> str:
    return {16: "whole", 8: "q8", 4: "q4", 68: "r4", 67: "r3"}[bits]


def _waiting(kinds: list[AttentionMethod]) -> str:
    every = sorted({how.every for how in kinds if getattr(how, "every", None) is not None})  # type: ignore[attr-defined]
    if any(getattr(how, "similarity", None) is not None for how in kinds):
        return "each step"
    return f"each {' or '.join(map(str, every))} steps, at a cut" if every else "never"
