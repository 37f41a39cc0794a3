"""Loading of decoder weights: Hugging Face folders (safetensors, whole or sharded), single safetensors or npz files.

Tensors of the requested dtype stay mapped from the file, so that a second process shares their pages. Nothing is
unpickled: `.bin`, `.pt` and `.pth` are refused. GGUF files become folders first, in `shared.lm.gguf_file`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fovea.errors import Malformed, NotFound, UnsupportedMedia
from shared.lm.config import DecoderConfig, from_official
from shared.lm.decoder import Decoder

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_DROPPED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of keys that official files carry and that hold no weights: mask buffers and rotary tables."""

_INDEX = "model.safetensors.index.json"


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Decoder:
    """Load the decoder of a Hugging Face folder, in eval mode and without gradients.

    Raises NotFound without config or weights, UnsupportedMedia for pickled ones, BadInput for a family or variant that
    the decoder does not have, Malformed for broken files or tensors that do not fit the config.
    """
    config = read_config(folder)
    tensors: dict[str, Tensor] = {}
    for file in weights_files(folder):
        tensors |= read_tensors(file)
    model = build_without_weights(config)
    _check_fit(model, tensors := to_official_keys(tensors, config), folder)
    model.load_state_dict({k: x.to(device, dtype) for k, x in tensors.items()}, strict=False, assign=True)
    return model.requires_grad_(requires_grad=False).eval()


class _NoValues(TorchFunctionMode):
    """Draws no numbers: on the meta device there are none, and torch would import its compiler to find that out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return given["tensor"] if func is nn.init.normal_ else func(*args, **given)


def build_without_weights(config: DecoderConfig) -> Decoder:
    """A decoder on the meta device: shapes without memory, to be filled by `load_state_dict(assign=True)`."""
    with torch.device("meta"), _NoValues():
        return Decoder(config)


def read_config(folder: Path) -> DecoderConfig:
    """Read the folder's `config.json`."""
    return from_official(read_json(folder / "config.json"))


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder; `NotFound` without the file, `Malformed` if it is not a JSON object."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        detail = f"{file.parent.name} has no {file.name}."
        raise NotFound(detail, hint="A model folder has config.json, safetensors and tokenizer.json.") from error
    except ValueError as error:
        raise Malformed(f"{file.name} of {file.parent.name} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise Malformed(f"{file.name} of {file.parent.name} is not a JSON object.")
    return found


def weights_files(folder: Path) -> list[Path]:
    """List the safetensors files that hold the folder's weights, in a stable order.

    Raises NotFound if there are none or a shard is missing, UnsupportedMedia if there are only pickles.
    """
    if (folder / _INDEX).is_file():
        names = sorted(set(read_json(folder / _INDEX).get("weight_map", {}).values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        if Path(name).name != name:
            raise Malformed(f"The shard {name!r} lies outside the model's folder.")
        if not (folder / name).is_file():
            _refuse_pickles(folder)
            detail = f"{folder.name} has no {name}."
            raise NotFound(detail, hint="Weights are read from model.safetensors or its shards.")
    return [folder / name for name in names]


def _refuse_pickles(folder: Path) -> None:
    for file in sorted(folder.glob("*")):
        if file.suffix in _PICKLES:
            read_tensors(file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file (mapped, not copied) or an npz file.

    Raises UnsupportedMedia for a pickle or an unknown format, Malformed if the file is not what its name says.
    """
    if file.suffix in _PICKLES:
        detail = f"{file.name} is a pickle, and reading a pickle runs the code in it; it is refused."
        raise UnsupportedMedia(detail, hint="Convert it to safetensors offline with weights_only=True.")
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays}
    except (SafetensorError, ValueError, OSError) as error:
        raise Malformed(f"{file.name} can't be read as {file.suffix[1:]}: {error}.") from error
    detail = f"Weights are not read from {file.suffix or 'a file without suffix'} files."
    raise UnsupportedMedia(detail, hint="safetensors, npz and GGUF are read.")


def to_official_keys(tensors: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """Rename tensors to the decoder's keys: adds the prefix that GPT-2 files lack, drops buffers and second names."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.endswith(_DROPPED) or (key == "lm_head.weight" and config.tied):
            continue
        bare = config.path == "gpt2" and not key.startswith(("transformer.", "lm_head."))
        renamed[f"transformer.{key}" if bare else key] = tensor
    return renamed


def weights_digest(folder: Path) -> str:
    """Return the sha256 over the folder's weights files, in order."""
    digest = hashlib.sha256()
    for file in weights_files(folder):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _check_fit(model: Decoder, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse tensors that do not fit, naming the first."""
    expected = {key: x.shape for key, x in model.state_dict().items()}
    if model.config.tied:
        expected.pop("lm_head.weight", None)
    problems = [f"{key} is missing" for key in expected if key not in tensors]
    problems += [f"{key} is not part of this family" for key in tensors if key not in expected]
    problems += [
        f"{key} is {list(tensors[key].shape)} where the config says {list(shape)}"
        for key, shape in expected.items()
        if key in tensors and tensors[key].shape != shape
    ]
    if problems:
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Malformed(f"The weights of {folder.name} do not fit its config: {problems[0]}{more}.")
