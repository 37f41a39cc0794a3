"""The tokenizer inside a GGUF file, as the two JSON files of a Hugging Face folder.

Byte-level BPE with the splitting rules of the known `tokenizer.ggml.pre` names. Knows nothing about tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from shared.errors import Malformed, UnsupportedMedia

__all__ = ["tokenizer_files"]

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen 2 cut text into words; they differ in how many digits stay together."""

_CONTROL, _USER = 3, 4
"""Token types: never in text, and added by the user."""


def tokenizer_files(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`tokenizer.json` and `tokenizer_config.json` for the metadata of a GGUF file.

    Raises:
        UnsupportedMedia: Not byte-level BPE, or an unknown splitting rule.
        Malformed: The vocabulary is missing or does not fit its merges.
    """
    kind = facts.get("tokenizer.ggml.model")
    if kind != "gpt2":
        detail = f"The GGUF file has a tokenizer of kind {kind!r}; byte-level BPE ('gpt2') is read."
        raise UnsupportedMedia(detail, hint="Use the model's Hugging Face folder.")
    try:
        tokens, merges = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.merges"]
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        bpe = models.BPE({t: i for i, t in enumerate(tokens)}, pairs, ignore_merges=_rule(facts) == "llama-bpe")
    except (KeyError, Exception) as error:  # the library raises a bare Exception for merges outside the vocabulary
        if isinstance(error, UnsupportedMedia):
            raise
        detail = f"The tokenizer of the GGUF file is broken: {error}."
        raise Malformed(detail) from error
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.ByteLevel()
    _split(tokenizer, _rule(facts))
    _add(tokenizer, tokens, facts.get("tokenizer.ggml.token_type", ()))
    named = {f"{name}_token": _token(facts, tokens, name) for name in ("bos", "eos", "unknown", "padding")}
    if facts.get("tokenizer.ggml.add_bos_token") and (bos := named["bos_token"]):
        first = facts["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, first)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": named["bos_token"], "eos_token": named["eos_token"],
        "unk_token": named["unknown_token"], "pad_token": named["padding_token"],
        "chat_template": facts.get("tokenizer.chat_template"), "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    return {"tokenizer.json": json.loads(tokenizer.to_str()), "tokenizer_config.json": config}


def _rule(facts: Mapping[str, Any]) -> str:
    return str(facts.get("tokenizer.ggml.pre", "default"))


def _split(tokenizer: Tokenizer, rule: str) -> None:
    """Set how text is cut before merging."""
    level = pre_tokenizers.ByteLevel
    if rule in {"gpt-2", "default"}:
        tokenizer.pre_tokenizer = level(add_prefix_space=False)
    elif rule == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), level(add_prefix_space=False)]
        )
    elif rule in {"llama-bpe", "qwen2"}:
        words = Regex(_WORDS % (3 if rule == "llama-bpe" else 1))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(words, "isolated"), level(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.normalizer = normalizers.NFC() if rule == "qwen2" else None
    else:
        detail = f"The GGUF file cuts text by the rule {rule!r}; gpt-2, smollm, llama-bpe and qwen2 are known."
        raise UnsupportedMedia(detail, hint="Use the model's Hugging Face folder.")


def _add(tokenizer: Tokenizer, tokens: list[str], types: Any) -> None:
    added = {_CONTROL: True, _USER: False}
    for token, kind in zip(tokens, types, strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind in added:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])


def _token(facts: Mapping[str, Any], tokens: list[str], name: str) -> str | None:
    number = facts.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[number] if number is not None and 0 <= number < len(tokens) else None
