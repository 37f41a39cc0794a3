"""Conversion of a GGUF file to a Hugging Face folder, once: config, dequantised tensors, tokenizer.

The folder is cached under the file's digest and the dtype, so it is safe to delete and is never stale. Knows
llama.cpp's names and its order of q and k rows; knows nothing about decoders.
"""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fovea.errors import Malformed, NotFound, UnsupportedMedia
from shared.lm.bundled_models import derived_folder
from shared.lm.gguf_tokenizer import tokenizer_files
from shared.lm.quantization import QuantizedMatrix, from_gguf_blocks

_KINDS = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
"""GGUF architecture → official model type."""

_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_HEAD = "output.weight"
_ROPE_TABLE = "rope_freqs.weight"

_PER_LAYER = (
    {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    | {f"attn_{part}": f"self_attn.{part}_proj" for part in ("q", "k", "v")}
    | {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    | {f"attn_{part}_norm": f"self_attn.{part}_norm" for part in ("q", "k")}
)
_PER_GEMMA_LAYER = _PER_LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

_GEMMA3_EVERY = 6
"""One in so many layers of Gemma 3 is global, where the file does not say."""

_GEMMA3_LOCAL_BASE = 10000.0
_GEMMA3_27B_LAYERS = 62
"""The one size that scales queries by its width per head; llama.cpp knows it by its layers, the file does not say."""


def unpack(file: Path, cache: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Return the folder that holds the same model as `file`, converted now or found in `cache`.

    Raises NotFound without the file, Malformed if it is not GGUF or lacks facts or tensors, UnsupportedMedia for an
    architecture, rope or tokenizer that is not read.
    """
    if not file.is_file():
        raise NotFound(f"There is no file {file.name} to read a model from.")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = derived_folder(cache, f"{digest[:32]}-{str(dtype).removeprefix('torch.')}")
    if not (folder / "config.json").is_file():
        _write(file, folder, dtype, digest)
    return folder


def count_kinds(file: Path) -> Counter[str]:
    """Count the entries of the file's matrices by kind (`Q4_1`, `F16`, …); `Malformed` if the file is not GGUF."""
    kinds: Counter[str] = Counter()
    for tensor in _open(file)[0].tensors:
        if len(tensor.shape) == 2:
            kinds[tensor.tensor_type.name] += int(tensor.n_elements)
    return kinds


def read_quantized(file: Path) -> dict[str, QuantizedMatrix]:
    """Read the matrices that the file holds in 8 or 4 bits, as they are, by official key; others are left out.

    Raises Malformed and UnsupportedMedia as `unpack`.
    """
    reader, facts = _open(file)
    config, found = _config(facts, reader), {}
    for tensor in reader.tensors:
        if tensor.name == _ROPE_TABLE or len(tensor.shape) != 2:
            continue
        matrix = from_gguf_blocks(tensor.tensor_type.name, np.asarray(tensor.data), int(tensor.shape[0]))
        if matrix is not None:
            key, heads = _official_key(tensor.name, config)
            found[key] = matrix if heads is None else matrix.take_rows(_half_split(np.arange(matrix.rows), heads))
    return found


def _write(file: Path, folder: Path, dtype: torch.dtype, digest: str) -> None:
    """Write into a temporary neighbour and rename: readers see a whole folder or none, with any number of processes."""
    reader, facts = _open(file)
    config, raw = _config(facts, reader), {tensor.name: tensor for tensor in reader.tensors}
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
    try:
        tensors = {key: x.to(dtype).contiguous() for key, x in _tensors(raw, config)}
        save_file(tensors, making / "model.safetensors", metadata={"format": "pt", "source_sha256": digest})
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
        for name, content in {"config.json": config, **tokenizer_files(facts)}.items():
            (making / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        making.replace(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _open(file: Path) -> tuple[Any, dict[str, Any]]:
    """The library's reader, and the file's metadata by name."""
    from gguf import GGUFReader  # noqa: PLC0415  # needed once per file, and slow to import

    try:
        reader = GGUFReader(file)
        fields = reader.fields.items()
        return reader, {name: field.contents() for name, field in fields if not name.startswith("GGUF.")}
    except Exception as error:  # broken bytes lead the reader to a dozen unrelated exceptions
        raise Malformed(f"{file.name} can't be read as GGUF: {error}.") from error


def _config(facts: Mapping[str, Any], reader: Any) -> dict[str, Any]:
    arch = facts.get("general.architecture")
    if not isinstance(arch, str) or arch not in _KINDS or facts.get(f"{arch}.expert_count"):
        detail = f"GGUF files of architecture {arch!r} are not read; {', '.join(sorted(_KINDS))} without experts are."
        raise UnsupportedMedia(detail, hint="Use the model's Hugging Face folder.")
    shapes = {tensor.name: [int(n) for n in tensor.shape] for tensor in reader.tensors}
    try:
        heads, width = int(facts[f"{arch}.attention.head_count"]), int(facts[f"{arch}.embedding_length"])
        head_dim = int(facts.get(f"{arch}.attention.key_length", width // heads))
        config = {
            "model_type": _KINDS[arch],
            "architectures": [f"{_KINDS[arch].capitalize()}ForCausalLM"],
            "vocab_size": shapes["token_embd.weight"][1],
            "hidden_size": width,
            "intermediate_size": int(facts[f"{arch}.feed_forward_length"]),
            "num_hidden_layers": int(facts[f"{arch}.block_count"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(facts.get(f"{arch}.attention.head_count_kv", heads)),
            "head_dim": head_dim,
            "max_position_embeddings": int(facts[f"{arch}.context_length"]),
            "rms_norm_eps": _tidy(facts[f"{arch}.attention.layer_norm_rms_epsilon"]),
            "tie_word_embeddings": _HEAD not in shapes,
            "rope_parameters": (rope := _rope(facts, arch, reader, head_dim)),
            "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
        }
        if arch == "gemma3":
            config |= _gemma3(facts, config, rope)
    except (KeyError, TypeError, IndexError, ValueError, ZeroDivisionError) as error:
        raise Malformed(f"The GGUF file lacks what a model needs, or holds it in another form: {error}.") from error
    return config


def _gemma3(facts: Mapping[str, Any], config: Mapping[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """Parts of Gemma 3 alone: windows, two rotary bases and a scale of queries."""
    every = facts.get("gemma3.attention.sliding_window_pattern", _GEMMA3_EVERY)
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    # The pattern is a number, or one flag per layer that says whether it slides.
    slides = every if isinstance(every, list) else [bool((layer + 1) % every) for layer in range(layers)]
    scalar = width / config["num_attention_heads"] if layers == _GEMMA3_27B_LAYERS else config["head_dim"]
    if scale := facts.get("gemma3.attention.scale"):
        scalar = _tidy(float(scale) ** -2)
    local = _tidy(facts.get("gemma3.rope.freq_base_swa", _GEMMA3_LOCAL_BASE))
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": int(facts["gemma3.attention.sliding_window"]),
        "layer_types": ["sliding_attention" if slid else "full_attention" for slid in slides],
        "query_pre_attn_scalar": scalar,
        "final_logit_softcapping": facts.get("gemma3.final_logit_softcapping"),
        "rope_parameters": {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": local}},
    }


def _rope(facts: Mapping[str, Any], arch: str, reader: Any, head_dim: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": _tidy(facts.get(f"{arch}.rope.freq_base", 10000.0))}
    turned, scaling = facts.get(f"{arch}.rope.dimension_count", head_dim), facts.get(f"{arch}.rope.scaling.type")
    if turned != head_dim or scaling not in {None, "none", "linear"}:
        detail = f"Rotation of {turned} of {head_dim} entries with scaling {scaling} is not read."
        raise UnsupportedMedia(detail, hint="Use the model's Hugging Face folder.")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": float(facts[f"{arch}.rope.scaling.factor"])}
    # llama.cpp ships Llama 3's stretching as one divisor per frequency.
    for tensor in reader.tensors:
        if tensor.name == _ROPE_TABLE:
            rope |= {"rope_type": "table", "table": [float(x) for x in _plain(tensor)]}
    return rope


def _tidy(value: float) -> float:
    """A float32 as the decimal that was meant: 9.99999975e-06 → 1e-05."""
    return float(f"{float(value):.6g}")


def _tensors(raw: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Official keys and dequantised tensors."""
    gemma = config["model_type"] == "gemma3_text"
    for name, tensor in raw.items():
        if name == _ROPE_TABLE:
            continue
        plain = _plain(tensor)
        key, heads = _official_key(name, config)
        if heads is not None:
            plain = _half_split(plain, heads)
        if gemma and key.endswith("norm.weight"):
            plain = plain - 1  # llama.cpp multiplies by the weight alone, the official norm by 1 + weight
        yield key, torch.from_numpy(plain)


def _official_key(name: str, config: Mapping[str, Any]) -> tuple[str, int | None]:
    """The official key of a tensor, and how many heads its rows are to be split into halves for, if any."""
    if key := _WHOLE.get(name) or ("lm_head.weight" if name == _HEAD else None):
        return key, None
    known = _PER_GEMMA_LAYER if config["model_type"] == "gemma3_text" else _PER_LAYER
    part = name.split(".")
    if len(part) != 4 or part[0] != "blk" or part[2] not in known:
        raise UnsupportedMedia(f"The GGUF file has a tensor {name!r}, which this family does not have.")
    turned = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    heads = turned.get(part[2]) if config["model_type"] == "llama" else None
    return f"model.layers.{part[1]}.{known[part[2]]}.{part[3]}", heads


def _plain(tensor: Any) -> np.ndarray:
    from gguf import dequantize  # noqa: PLC0415  # see `_open`

    found: np.ndarray = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    return found


def _half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp stores a Llama's q and k so that neighbours turn together: back to halves that turn together."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))
