"""Situations in which the options of a task show, and the few that no answer can show. Of tasks, not of plug-ins."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from shared.vision.decode import decode
from shared.vision.draw import encode

_CONTEXTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "actions": [
        {"class_scores": (0.3, 0.3, 0.2), "class_names": ("a", "b", "c"), "max_proposals": 1000,
         "include": ("activitynet",)},
    ],
    "detect": [
        {"confidence": 0.01, "include": ()}, {"tile": "a quarter", "confidence": 0.01, "include": ()},
        {"confidence": 0.001, "iou": 0.2, "max_detections": 3000, "include": ()},
    ],
    "plan": [{"task": "hull", "solver": "pointer"}, {"solver": "pointer"}],
    "scanpath": [{"mode": "sampled", "reference": (0, 1, 2)}],
    "restore": [{"format": "jpeg", "picture": "restored"}, {"memory_mib": 64}, {"image": "poster", "dry_run": True}],
    "segment": [{"threshold": 0.001}, {"threshold": 1e-5}, {"image": "noise"}, {"image": "pale copy"}],
    "embed": [{"input": "word " * 300, "truncate": True}, {"input": ["one", "two"]}],
    "chat": [{"stream": True}, {"unknown": 1}, {"logprobs": True, "max_tokens": 2}],
}  # fmt: skip

_WARM = ({"temperature": 2, "seed": 1, "max_tokens": 4}, {"temperature": 2, "seed": 1, "max_tokens": 8, "n": 8})
_REPEATING = ({"messages": [{"role": "user", "content": "Say it: ha ha ha ha ha ha"}], "max_tokens": 8}, *_WARM)

_OWN_CONTEXTS: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] = {
    **{("chat", name): _WARM for name in ("temperature", "top_p", "top_k", "min_p", "seed", "n", "logit_bias")},
    **{("chat", name): _REPEATING for name in ("presence_penalty", "frequency_penalty", "repetition_penalty")},
}
"""Where one option is sure to show: tried before all others."""

_FOUND_NOTHING = {
    "model": "m", "version": "1", "engine": "onnx", "width": 9, "height": 9, "detections": [],
    "counts": {}, "times": {},
}  # fmt: skip

_VALUES: Mapping[tuple[str, str], Sequence[Any]] = {
    ("chat", "logit_bias"): [{3: 100.0}, {65: 100.0}],
    ("chat", "longctx"): [{"method": "nobody"}],
    ("chat", "top_k"): [1],
    ("embed", "truncate_prompt_tokens"): [1, 2],
    ("chat", "interventions"): [[{"type": "scale", "site": "resid_post.9999", "factor": 0.5}]],
    ("chat", "capture"): [[{"type": "activation", "site": "resid_post.9999"}]],
    ("chat", "stream_options"): [{"include_usage": True}],
    ("chat", "response_format"): [{"type": "json_object"}, {"type": "choice", "choices": ["red", "blue"]}],
    ("chat", "structured_outputs"): [{"json_object": True}, {"choice": ["red", "blue", " red"]}],
    ("chat", "tools"): [[{"type": "function", "function": {"name": "f"}}]],
    ("chat", "tool_choice"): ["required"],
    ("chat", "presence_penalty"): [2.0],
    ("chat", "frequency_penalty"): [2.0],
    ("chat", "stop"): [["e"], ["a"], [" "], ["o"], ["\ufffd"]],  # the last: bytes that are no text, of random weights
    ("probe", "receivers"): [[(1, "q", 0)]],
    ("probe", "size"): [{"width": 32, "layers": 2, "heads": 2, "context": 32, "batch": 2}],
    ("probe", "needles"): [[{"sentence": "The sky is green.", "question": "What is the sky?", "answer": "green"}]],
    ("probe", "longctx"): [{"method": "streaming"}],
    ("plan", "detections"): [_FOUND_NOTHING],
    ("scanpath", "grid"): [(9, 3), (1, 27)],
    ("scanpath", "objects"): [((0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0))],
    ("scanpath", "image"): ["noise"],
    ("segment", "min_area"): [10**9],
}

FREE: Mapping[tuple[str, str], str] = {
    **dict.fromkeys(
        (("embed", "user"), *(("chat", name) for name in ("service_tier", "metadata", "store", "user"))),
        "taken and ignored, as its description says",
    ),
    **{
        ("chat", name): "shows with a real vocabulary and template: services/llm_longctx/tests/test_openai_fields.py"
        for name in (
            "add_generation_prompt", "add_special_tokens", "bad_words", "chat_template_kwargs",
            "continue_final_message", "ignore_eos", "include_reasoning", "include_stop_str_in_output", "min_tokens",
            "skip_special_tokens", "stop_token_ids", "truncate_prompt_tokens", "truncation_side",
        )
    },
    ("chat", "session_id"): "the route fetches what it names",
    ("chat", "document_id"): "the route fetches what it names",
    ("plan", "time_limit"): "a bound of time",
    ("probe", "seed"): "see checks.experiments",
} | {
    (task, "model"): "the platform chooses the Servable by it" for task in (*_CONTEXTS, "complete", "classify", "judge")
}  # fmt: skip
"""Options that no answer can show, each with the reason."""


def situations(task: str, example: BaseModel, option: str | None = None) -> list[dict[str, Any]]:
    """Changes to an example of a task, next to the example itself; or those in which one option shows."""
    changes = _CONTEXTS.get(task, ()) if option is None else _OWN_CONTEXTS.get((task, option), ())
    return [{name: _drawn(value, example) for name, value in change.items()} for change in changes]


def _drawn(value: Any, example: BaseModel) -> Any:
    if value == "noise":
        return _noise()
    if value == "a quarter":  # of a large picture: slices of 64 pixels would be hundreds
        return max(64, max(decode(example.image).pixels.shape) // 4)  # type: ignore[attr-defined]
    if value == "poster":  # so large that what a small network needs for it depends on the memory it may take
        return encode(np.zeros((512, 520, 3), np.uint8))
    if value == "pale copy":  # what is found in the copy, a model is less sure of
        pixels = decode(example.image).pixels.astype(np.float32)  # type: ignore[attr-defined]
        pale = pixels.mean((0, 1)) * 0.85 + pixels * 0.15
        return encode(np.concatenate([pixels, pale], axis=1).clip(0, 255).astype(np.uint8))
    return value


def told_values(task: str, option: str, request: BaseModel) -> list[Any]:
    if (task, option) == ("restore", "reference"):
        return [request.image]  # type: ignore[attr-defined]  # requests of this task have a picture
    return [_noise() if value == "noise" else value for value in _VALUES.get((task, option), ())]


def _noise() -> bytes:
    return encode(np.random.default_rng(3).integers(0, 256, (96, 128, 3), dtype=np.uint8))
