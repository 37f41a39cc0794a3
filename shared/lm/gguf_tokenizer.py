"""Conversion of the tokenizer in a GGUF file to the two JSON files of a Hugging Face folder.

Byte-level BPE with the splitting rules of the known `tokenizer.ggml.pre` names, and SentencePiece's BPE, whose merges
follow from its scores. Knows nothing about tensors.
"""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from fovea.errors import Malformed, UnsupportedMedia

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen 2 cut text into words; they differ in how many digits stay together."""

_CONTROL, _USER = 3, 4
"""Token types: never in text, and added by the user."""


def tokenizer_files(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tokenizer.json` and `tokenizer_config.json` for the metadata of a GGUF file.

    Raises UnsupportedMedia for another kind of tokenizer or splitting rule, Malformed if vocabulary and merges do not
    fit.
    """
    kind = facts.get("tokenizer.ggml.model")
    make = {"gpt2": _byte_level, "llama": _sentencepiece}.get(str(kind))
    if make is None:
        detail = f"The GGUF file has a tokenizer of kind {kind!r}; BPE is read, byte-level or SentencePiece's."
        raise UnsupportedMedia(detail, hint="Use the model's Hugging Face folder.")
    try:
        tokens = list(facts["tokenizer.ggml.tokens"])
        tokenizer = make(facts, tokens)
    except UnsupportedMedia:
        raise
    except Exception as error:  # the library raises a bare Exception for merges outside the vocabulary
        raise Malformed(f"The tokenizer of the GGUF file is broken: {error}.") from error
    _add(tokenizer, tokens, facts.get("tokenizer.ggml.token_type", ()), normalized=kind == "llama")
    named = {f"{name}_token": _token(facts, tokens, name) for name in ("bos", "eos", "unknown", "padding")}
    if facts.get("tokenizer.ggml.add_bos_token", kind == "llama") and (bos := named["bos_token"]):
        first = facts["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, first)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": named["bos_token"],
        "eos_token": named["eos_token"],
        "unk_token": named["unknown_token"],
        "pad_token": named["padding_token"],
        "chat_template": facts.get("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
    }
    return {"tokenizer.json": json.loads(tokenizer.to_str()), "tokenizer_config.json": config}


def _byte_level(facts: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """Bytes are letters; merges are listed."""
    pairs = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    bpe = models.BPE({t: i for i, t in enumerate(tokens)}, pairs, ignore_merges=_rule(facts) == "llama-bpe")
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.ByteLevel()
    _split(tokenizer, _rule(facts))
    return tokenizer


def _sentencepiece(facts: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """Spaces are ▁, unknown characters are spelled in bytes, and the pair with the best score is merged first."""
    scores, unknown = facts["tokenizer.ggml.scores"], _token(facts, tokens, "unknown")
    vocab = {token: i for i, token in enumerate(tokens)}
    ranked = sorted(
        (-scores[i], vocab[token[:cut]], vocab[token[cut:]])
        for token, i in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    )
    pairs = [(tokens[left], tokens[right]) for _, left, right in ranked]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = facts.get("tokenizer.ggml.add_space_prefix", True)
    spaces: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    return tokenizer


def _rule(facts: Mapping[str, Any]) -> str:
    return str(facts.get("tokenizer.ggml.pre", "default"))


def _split(tokenizer: Tokenizer, rule: str) -> None:
    """Set how text is cut before merging."""
    level = pre_tokenizers.ByteLevel
    if rule in {"gpt-2", "default"}:
        tokenizer.pre_tokenizer = level(add_prefix_space=False)
    elif rule == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level(add_prefix_space=False)])
    elif rule in {"llama-bpe", "qwen2"}:
        words = pre_tokenizers.Split(Regex(_WORDS % (3 if rule == "llama-bpe" else 1)), "isolated")
        letters = level(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
        tokenizer.normalizer = normalizers.NFC() if rule == "qwen2" else None
    else:
        detail = f"The GGUF file cuts text by the rule {rule!r}; gpt-2, smollm, llama-bpe and qwen2 are known."
        raise UnsupportedMedia(detail, hint="Use the model's Hugging Face folder.")


def _add(tokenizer: Tokenizer, tokens: list[str], types: Any, *, normalized: bool) -> None:
    """Tokens that are never cut; those a user added are looked for in the normalised text where there is such."""
    added = {_CONTROL: True, _USER: False}
    for token, kind in zip(tokens, types, strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind in added:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=normalized)])


def _token(facts: Mapping[str, Any], tokens: list[str], name: str) -> str | None:
    number = facts.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[number] if number is not None and 0 <= number < len(tokens) else None
