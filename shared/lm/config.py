"""Configuration of a decoder as one frozen value, and its parser for official config files.

A family is a set of facts, not a class: Qwen2 is the Llama path with biases on q, k and v. Knows nothing about tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fovea.errors import BadInput

_LLAMA_PATH = {"llama": False, "mistral": False, "qwen2": True, "qwen3": False}
"""Official `model_type`s that are the Llama path → whether q, k and v carry biases whatever else the config says."""

_GEMMA3 = ("gemma3_text", "gemma3")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Scaling of rotary frequencies past the context of pre-training.

    `linear` divides all frequencies by `factor`. `llama3` does so only for wavelengths above `original / low`, leaves
    those under `original / high` alone, and blends in between. `table` divides by one given number per frequency.
    """

    kind: Literal["linear", "llama3", "table"]
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    table: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Configuration of one decoder.

    Attributes:
        path: Which of the two code paths; `gpt2` (learned positions, LayerNorm) or `llama` (rotary, RMSNorm).
        vocab, width, layers, heads, kv_heads, head_dim, hidden: V, D, L, H, G, d and the width of the MLP.
        positions: Longest sequence the model was made for, in tokens.
        norm_eps: Added to the mean square (or variance) before the root.
        tied: Whether the output matrix is the token embedding.
        rope_theta: Base of the rotary angles.
        rope_scaling: Stretching of the rotary angles, or None.
        qkv_bias, out_bias: Biases of the Llama path's projections.
        qk_norm: RMSNorm on each head of q and k, before rotation.
        windows: Per layer how many tokens a token sees, itself included, or None for all; None: no layer has a window.
        local_theta: Base of the rotary angles of layers with a window, which are never stretched.
        query_scale: Scores are divided by its root instead of that of head_dim; None: head_dim.
    """

    path: Literal["gpt2", "llama", "gemma3"]
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    positions: int
    norm_eps: float
    tied: bool
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] | None = None
    local_theta: float = 10000.0
    query_scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse facts that no decoder can have; `ValueError` if a size is not positive, or heads do not divide."""
        for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "hidden", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads can't share {self.kv_heads} key/value heads evenly")
        windows = (1,) * self.layers if self.windows is None else self.windows
        if len(windows) != self.layers or any(w is not None and w < 1 for w in windows):
            message = f"windows are one positive number or None for each of {self.layers} layers, not {self.windows}"
            raise ValueError(message)
        if self.path != "gpt2" and self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs: head_dim must be even, not {self.head_dim}")


def from_official(facts: Mapping[str, Any]) -> DecoderConfig:
    """Parse an official `config.json` (Hugging Face's names); `BadInput` if a fact is missing or not supported."""
    kind = facts.get("model_type")
    try:
        if kind == "gpt2":
            return _gpt2(facts)
        if kind in _LLAMA_PATH:
            return _llama(facts, qkv_bias=_LLAMA_PATH[kind] or bool(facts.get("attention_bias")))
        if kind in _GEMMA3:
            return _gemma3(facts)
    except (KeyError, TypeError, ValueError) as error:
        detail = f"The config of this {kind} model can't be used: {error!r} is missing or out of range."
        raise BadInput(detail, hint="Compare config.json with the official one.") from error
    detail = f"The config says model_type {kind!r}; known are gpt2, gemma3_text, {', '.join(sorted(_LLAMA_PATH))}."
    raise BadInput(detail, hint="Convert the model to one of the known families.")


def _gpt2(facts: Mapping[str, Any]) -> DecoderConfig:
    width, heads = int(facts["n_embd"]), int(facts["n_head"])
    return DecoderConfig(
        path="gpt2",
        vocab=int(facts["vocab_size"]),
        width=width,
        layers=int(facts["n_layer"]),
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        hidden=int(facts.get("n_inner") or 4 * width),
        positions=int(facts["n_positions"]),
        norm_eps=float(facts.get("layer_norm_epsilon", 1e-5)),
        tied=bool(facts.get("tie_word_embeddings", True)),
    )


def _llama(facts: Mapping[str, Any], *, qkv_bias: bool) -> DecoderConfig:
    _refuse_variants(facts)
    heads, width = int(facts["num_attention_heads"]), int(facts["hidden_size"])
    rope = dict(facts.get("rope_parameters") or facts.get("rope_scaling") or {})
    return DecoderConfig(
        path="llama",
        **_sizes(facts),
        kv_heads=int(facts.get("num_key_value_heads") or heads),
        head_dim=int(facts.get("head_dim") or width // heads),
        tied=bool(facts.get("tie_word_embeddings", False)),
        rope_theta=float(rope.get("rope_theta") or facts.get("rope_theta") or 10000.0),
        rope_scaling=_scaling(rope),
        qkv_bias=qkv_bias,
        out_bias=facts["model_type"] != "qwen2" and bool(facts.get("attention_bias")),
        qk_norm=facts["model_type"] == "qwen3",
    )


def _sizes(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that all families but GPT-2 state under the same names."""
    return {
        "vocab": int(facts["vocab_size"]),
        "width": int(facts["hidden_size"]),
        "layers": int(facts["num_hidden_layers"]),
        "heads": int(facts["num_attention_heads"]),
        "hidden": int(facts["intermediate_size"]),
        "positions": int(facts["max_position_embeddings"]),
        "norm_eps": float(facts["rms_norm_eps"]),
    }


def _gemma3(facts: Mapping[str, Any]) -> DecoderConfig:
    """Parse Gemma 3's text model; the official file of the larger sizes wraps it in `text_config`."""
    facts = facts.get("text_config") or facts
    if facts.get("final_logit_softcapping") or facts.get("attn_logit_softcapping") or facts.get("attention_bias"):
        raise BadInput("This decoder has no form for a Gemma 3 with soft-capping or biases.")
    if facts.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        detail = f"This decoder has no form for hidden_activation={facts['hidden_activation']!r}."
        raise BadInput(detail, field="hidden_activation")
    layers, every = int(facts["num_hidden_layers"]), int(facts.get("sliding_window_pattern") or 6)
    kinds = facts.get("layer_types") or [
        "full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)
    ]
    # One table of rotary facts per kind of layer, or, in older files, one for global layers and a base for the others.
    rope = dict(facts.get("rope_parameters") or facts.get("rope_scaling") or {})
    whole, local = dict(rope.get("full_attention") or rope), dict(rope.get("sliding_attention") or {})
    return DecoderConfig(
        path="gemma3",
        **_sizes(facts),
        kv_heads=int(facts["num_key_value_heads"]),
        head_dim=int(facts["head_dim"]),
        tied=bool(facts.get("tie_word_embeddings", True)),
        qk_norm=True,
        rope_theta=float(whole.get("rope_theta") or facts.get("rope_theta") or 1e6),
        rope_scaling=_scaling(whole),
        windows=tuple(int(facts["sliding_window"]) if kind == "sliding_attention" else None for kind in kinds),
        local_theta=float(local.get("rope_theta") or facts.get("rope_local_base_freq") or 1e4),
        query_scale=float(facts.get("query_pre_attn_scalar") or facts["head_dim"]),
    )


def _refuse_variants(facts: Mapping[str, Any]) -> None:
    windowed = facts.get("sliding_window") and facts.get("use_sliding_window", facts["model_type"] == "mistral")
    has_other_activation = facts.get("hidden_act", "silu") != "silu"
    refused = {"hidden_act": has_other_activation, "mlp_bias": facts.get("mlp_bias"), "sliding_window": windowed}
    for name, wrong in refused.items():
        if wrong:
            raise BadInput(f"This decoder has no form for {name}={facts.get(name)!r}.", field=name)


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=float(rope["factor"]))
    if kind == "table":
        return RopeScaling("table", table=tuple(float(x) for x in rope["table"]))
    if kind == "llama3":
        factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
        return RopeScaling("llama3", factor, low, high, int(rope["original_max_position_embeddings"]))
    raise BadInput(f"Rope scaling {kind!r} is not built; known are default, linear, llama3.", field="rope_scaling")
