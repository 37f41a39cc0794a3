"""Weight formats of a served decoder: which one a file and a machine call for, and its few-bit matrices, packed once.

Packed matrices lie in the cache folder, named by the digest of the weights and by format. The same weights, widened,
are what torch multiplies with where no kernel serves: for long prompts on a device, for example. Knows files, formats;
knows nothing about engines or requests.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fovea.errors import InvalidOption, NotFound, NotReady, UnsupportedMedia
from services.llm_longctx.kernels import (
    LEAST_CAPABILITY,
    Fp8Matrix,
    PackedMatrix,
    SmallMatrix,
    backends,
    pack,
    pack_fp8,
)
from services.llm_longctx.kernels.decode_step import HEAD, is_supported
from services.llm_longctx.kernels.quantized_linear import LAYOUT
from shared.lm.bundled_models import derived_folder
from shared.lm.decoder import Decoder
from shared.lm.gguf_file import count_kinds, read_quantized, unpack
from shared.lm.quantization import QuantizedMatrix, quantize
from shared.lm.weights import load_decoder, read_tensors, weights_digest, weights_files

WeightFormat = Literal["bf16", "fp8", "q8", "q4", "fp32"]

_WHOLE_BITS = {"F32": "fp32", "F16": "bf16", "BF16": "bf16"}
_FOUR_BITS = ("Q4_0", "Q4_1")
_LINE = 64  # bytes of a line of the processor's cache
_SMALL = {"fp8", "q8", "q4"}


@dataclass(frozen=True, slots=True, eq=False)
class ModelWeights:
    """Weights of one decoder, ready to run.

    Attributes:
        model: The decoder, its matrices in float32 or bfloat16.
        folder: Where its files are.
        sha256: Digest of the weights.
        format: The format that the kernels multiply with.
        packed: Matrices of 4 or 8 bits by official key; none in `bf16` and `fp32`.
    """

    model: Decoder
    folder: Path
    sha256: str
    format: WeightFormat
    packed: Mapping[str, SmallMatrix]


def load_weights(source: Path, cache: Path, wanted: str, device: str = "cpu") -> ModelWeights:
    """Load a decoder in a format.

    Args:
        source: A Hugging Face folder, or a GGUF file, which is unpacked into the cache the first time.
        cache: Folder for what is derived.
        wanted: A `WeightFormat`, or `auto`: what the file holds, as far as this machine has kernels for it.
        device: Where the decoder runs.

    Raises:
        InvalidOption: There is no such format, or this decoder has no form for it.
        NotReady: The format needs C++ kernels, Triton or a newer card, and they are not there.
        FoveaError: The files are not there, or they are no model that the decoder has a form for.
    """
    if wanted not in {"auto", *get_args(WeightFormat)}:
        detail = f"Weights are auto, {', '.join(get_args(WeightFormat))}, not {wanted}."
        raise InvalidOption(detail, field="llm_weights")
    _check_source(source)
    chosen = _choose_format(source, device) if wanted == "auto" else cast("WeightFormat", wanted)
    dtype = torch.float32 if chosen == "fp32" else torch.bfloat16
    folder = source if source.is_dir() else unpack(source, cache, dtype)
    model, digest = load_decoder(folder, dtype, device), weights_digest(folder)
    if chosen in _SMALL and (reason := _unfit(model, device, chosen)) is not None:
        if wanted != "auto":
            raise reason
        chosen = "bf16"
    place = derived_folder(cache, f"{digest[:32]}-{chosen}-{LAYOUT}")
    found = _packed(source, model, place, chosen) if chosen in _SMALL else {}
    packed = {key: matrix.to(device) for key, matrix in found.items()}
    return ModelWeights(model, folder, digest, chosen, packed)


def _check_source(source: Path) -> None:
    if not source.exists():
        detail = f"There is no model at {source.name}."
        raise NotFound(detail, hint="FOVEA_LLM_MODEL names a served model, a Hugging Face folder or a GGUF file.")
    if source.is_file() and source.suffix != ".gguf":
        detail = f"{source.name} is neither a Hugging Face folder nor a GGUF file."
        raise UnsupportedMedia(detail, hint="Convert it to a folder with safetensors.")


def _choose_format(source: Path, device: str) -> WeightFormat:
    """The most frequent type of the file; without kernels for it float32 on a CPU, bfloat16 elsewhere."""
    is_cpu, kernels = device == "cpu", _few_bit_backend(device) in backends()
    if source.is_dir() or not kernels:
        if not is_cpu:
            return "bf16"
        if not kernels:
            return "fp32"
        held = {x.dtype for file in weights_files(source) for x in read_tensors(file).values() if x.dim() > 1}
        return "fp32" if held & {torch.float32, torch.float64} else "bf16"
    (kind, _), *_ = count_kinds(source).most_common(1)
    if kind in _WHOLE_BITS:
        return cast("WeightFormat", _WHOLE_BITS[kind]) if is_cpu else "bf16"
    return "q4" if kind in _FOUR_BITS else "q8"  # other kinds of few bits are rounded anew, and 8 bits lose nothing


def _unfit(model: Decoder, device: str, name: WeightFormat) -> InvalidOption | NotReady | None:
    """Why this decoder can't have few bits here, if it can't."""
    if name == "fp8" and (capability := _capability(device)) < LEAST_CAPABILITY:
        least, other = (f"{n // 10}.{n % 10}" for n in (LEAST_CAPABILITY, capability))
        has = f"this GPU has {other}" if capability else f"{device} is not a GPU"
        return NotReady(f"FP8 weights need a GPU of compute capability {least}, and {has}.", hint="Use bf16, q8 or q4.")
    if not is_supported(model):
        detail = f"Weights of few bits are for Llama-like decoders, not for {model.config.path}."
        return InvalidOption(detail, hint="Use bf16.", field="llm_weights")
    if (backend := _few_bit_backend(device)) in backends():
        return None
    if backend == "triton":
        detail = f"Weights of few bits need Triton on {device}, which can't be used."
        return NotReady(detail, hint="The extra `gpu` brings it.")
    detail = "Weights of few bits need the C++ kernels, which are not built."
    return NotReady(detail, hint="`fovea build-kernels` builds them where a C++ compiler is installed.")


def _capability(device: str) -> int:
    """Compute capability of a GPU, 89 for 8.9; 0 for other devices."""
    if not device.startswith("cuda"):
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _few_bit_backend(device: str) -> str:
    """The back end that multiplies with few bits."""
    return "cpu_ext" if device == "cpu" else "triton"


def _packed(source: Path, model: Decoder, folder: Path, name: WeightFormat) -> dict[str, SmallMatrix]:
    shapes = _matrices(model)
    if not (folder / "packed.safetensors").is_file():
        # Bits that the file holds are taken as they are, unless 8 are asked for where it has 4.
        found = {} if source.is_dir() else read_quantized(source)
        if model.config.tied and (tied := found.get("model.embed_tokens.weight")) is not None:
            found[HEAD] = tied
        _write(folder, {key: _round(found.get(key), weight, key, name) for key, weight in shapes.items()})
    # They stay mapped, so that processes share them; what does not begin at a line of the processor's cache is copied.
    mapped = load_file(folder / "packed.safetensors")
    read = {key: x.clone() if x.data_ptr() % _LINE else x for key, x in mapped.items()}
    kinds = {key: Fp8Matrix if name == "fp8" and key != HEAD else PackedMatrix for key in shapes}
    return {key: kinds[key].of(read[key], *weight.shape) for key, weight in shapes.items()}


def _matrices(model: Decoder) -> dict[str, Tensor]:
    """The decoder's matrices by official key, the output matrix under `HEAD`, tied or not."""
    state = model.state_dict()
    found = {key: x for key, x in state.items() if x.dim() == 2 and ".layers." in key}
    return {**found, HEAD: model.output_matrix.detach()}


def _round(held: QuantizedMatrix | None, weight: Tensor, key: str, name: WeightFormat) -> Tensor:
    # Logits suffer most from few bits, so the output matrix keeps 8 in groups.
    if name == "fp8" and key != HEAD:
        return pack_fp8(weight.cpu()).data
    if held is None or (name == "q8" and held.bits == 4):
        held = quantize(weight.float().cpu().numpy(), 4 if name == "q4" and key != HEAD else 8)
    return pack(held).data


def _write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write into a temporary neighbour and rename: readers see a whole folder or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
    try:
        (making / "packed.safetensors").write_bytes(_align(save(dict(tensors))))
        making.replace(folder)
    except OSError:
        if not (folder / "packed.safetensors").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _align(file: bytes) -> bytes:
    """A safetensors file whose tensors begin at a line: its header, of 8 bytes and JSON, ends with spaces."""
    end = 8 + int.from_bytes(file[:8], "little")
    room = -end % _LINE
    return (end - 8 + room).to_bytes(8, "little") + file[8:end] + b" " * room + file[end:]
