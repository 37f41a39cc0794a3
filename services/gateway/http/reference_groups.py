"""Groups of the API reference: what a caller wants to do, by the beginning of the path.

A path of a plug-in that no group knows is listed under the name of its service.
"""

from typing import NamedTuple


class PathGroup(NamedTuple):
    """One group of operations."""

    title: str
    about: str
    prefixes: tuple[str, ...]


GROUPS = (
    PathGroup("Segment, detect, classify and restore images",
        "Send an image as a file, as base64 in JSON or as the raw body. The answer is JSON, or an image by `Accept`.",
        ("/v1/segment", "/v1/detect", "/v1/classify", "/v1/restore")),
    PathGroup("Segment hospital studies",
        "Send DICOM files or a ZIP of them, or name a study of your PACS. The answer has areas, SEG and SR objects.",
        ("/v1/segment/dicom", "/v1/dicomweb")),
    PathGroup("Survey roads and follow videos",
        "Send photographs or a video of a drive. Each damage is counted once and placed by GPS.",
        ("/v1/detect/survey", "/v1/detect/stream")),
    PathGroup("Find actions, predict gaze and plan tours",
        "Models for features of videos, pictures of shelves and sets of points.",
        ("/v1/actions", "/v1/scanpath", "/v1/plan")),
    PathGroup("Chat, complete and embed text",
        "OpenAI's protocol: point an OpenAI client at `/v1`. Anthropic's protocol and MCP are there, too.",
        ("/v1/chat", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embed", "/tokenize", "/detokenize",
         "/tokenizer_info", "/v1/mcp")),
    PathGroup("Use long contexts",
        "Attention methods that keep less of the cache, stored documents, and sessions with a trained memory.",
        ("/v1/longctx", "/v1/documents", "/v1/sessions")),
    PathGroup("Adapt language models",
        "LoRA adapters in the layout of peft: store one, then send its name as `model`. The last two are vLLM's.",
        ("/v1/lora-adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")),
    PathGroup("Steer and patch generation",
        "Steering vectors, activations captured while a model generates, and sweeps that patch them.",
        ("/v1/steering-vectors", "/v1/captures", "/v1/sweeps")),
    PathGroup("Judge relevance and rerank",
        "Label passages for queries, measure how far the labels can be trusted, and rank systems with them.",
        ("/v1/judge", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score")),
    PathGroup("Study a language model",
        "Experiments on heads, circuits and activations. `model` names the language model.",
        ("/v1/probe",)),
    PathGroup("Run requests in the background",
        "Send any POST with `Prefer: respond-async` to get a job. Batches take a file of requests.",
        ("/v1/jobs", "/v1/files", "/v1/batches")),
    PathGroup("Find models", "Every model has a Card, an example request and its limits.", ("/v1/models",)),
    PathGroup("Use Open Inference v2", "Tensors in and out, as Triton's clients send them.", ("/v2",)),
    PathGroup("Manage keys, usage and traffic", "These need a key with the scope `admin`.", ("/v1/admin", "/v1/usage")),
    PathGroup("Check health and metrics", "No key needed.",
        ("/livez", "/readyz", "/health", "/ping", "/version", "/metrics")),
)  # fmt: skip


def find_group(path: str) -> str | None:
    """Return the title of a path's group: the one with the longest prefix; None if no group knows the path."""
    known = [(len(prefix), group.title) for group in GROUPS for prefix in group.prefixes if path.startswith(prefix)]
    return max(known)[1] if known else None
