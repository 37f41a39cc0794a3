"""Official checkpoints become served weights: read without running their code, compared key for key, stored by digest.

Knows state dicts and `network()`, whose builders state the official layouts; knows no model by name.
"""

import hashlib
import math
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fovea.errors import InvalidOption, Malformed, NotFound, TooLarge, UnsupportedMedia
from fovea_recipes.training.initializers import FOLDED, read_initializers
from fovea_recipes.training.publish import arrays_of, code_facts
from fovea_recipes.training.recipe import join_names
from fovea_recipes.training.safe_unpickler import CheckpointTensors, read_unpickled
from shared.registry import network
from shared.registry.discovery import LAYOUTS, networks
from shared.registry.weights import Manifest, NetworkSpec, write_weights

_ROOM = 3
"""How much larger than its network a checkpoint may be: room for float64, never for a bomb."""

_TABLE_BYTES = 2**20
"""Most bytes of a position table; published ones have tens of thousands."""


def import_weights(model: str, file: Path, folder: Path, positions: Path | None = None) -> Manifest:
    """Read an official checkpoint of `model`, check it, and store it in `folder` for the services to serve.

    The manifest's notes list `missing` keys, which are not needed to predict and keep their initial values,
    `unexpected` ones, for which there is no place, and `fitted` tables, which no checkpoint holds and nobody gave.

    Args:
        model: Name of a network; of its official layouts the one that fits is taken.
        file: `.safetensors`, `.pth`/`.pt`/`.ckpt` with tensors or with a whole model object, or `.onnx` with unfolded
            tensors.
        folder: `<data_dir>/weights`.
        positions: `.npy` with the position table of a gaze network (OAT), which its checkpoint lacks.

    Raises:
        NotFound: There is no such file or network.
        UnsupportedMedia, TooLarge, Malformed: The file is not a checkpoint of plain tensors.
        InvalidOption: It is one, but not of this network; the detail lists keys.
    """
    if not file.is_file():
        raise NotFound(f"There is no file {file.name!r}.")
    forms = _forms(model)
    blank = _blank(model, dict(next(iter(forms))))
    numbers = max(sum(map(math.prod, shapes.values())) for shapes in forms.values())
    apart: str | None = getattr(blank, "apart", None)
    limit = _ROOM * 4 * numbers + 2**20 + getattr(blank, "ballast", 0)
    held = read_checkpoint_file(file, limit, getattr(blank, "nested", None))
    state = _renamed(held, getattr(blank, "renamed", {}))
    config = _classes(blank, dict(_closest(state, forms)), state)
    if positions is not None:
        if apart is None:
            raise InvalidOption(f"{model!r} has no position table.", hint="Leave it out.", field="positions")
        config |= {apart: _read_positions(positions)}
    net = _official(model, config)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    names = {"names": join_names(held.names)} if held.names else {}
    wanted = net.state_dict()
    try:
        missing, unexpected = compare(state, wanted, idle=getattr(net, "idle", ()))
    except InvalidOption as error:
        error.hint = FOLDED if file.suffix.lower() == ".onnx" else error.hint
        raise
    net.load_state_dict({key: value for key, value in state.items() if key in wanted}, strict=False)
    manifest = Manifest(
        name=model,
        origin="imported",
        network=NetworkSpec(name=model, config=config),
        dtype="float32",
        parameters=sum(p.numel() for p in net.parameters()),
        data={"source": file.name, "source_sha256": digest, **names},
        code=code_facts(),
        notes={"missing": missing, "unexpected": unexpected} | ({"fitted": [apart]} if apart and not positions else {}),
    )
    return write_weights(folder, arrays_of(net), manifest)


def _read_positions(file: Path) -> list[list[float]]:
    """Rows of a position table; the network says how many and how long they must be."""
    if not file.is_file():
        raise NotFound(f"There is no file {file.name!r}.")
    if file.stat().st_size > _TABLE_BYTES:
        raise TooLarge(f"{file.name!r} has more than {_TABLE_BYTES:,} bytes, too many for a position table.")
    try:
        rows: list[list[float]] = np.asarray(np.load(file, allow_pickle=False), np.float64).tolist()
    except Exception as error:  # broken bytes lead numpy's readers to many unrelated exceptions
        raise Malformed(f"{file.name!r} is not a matrix in .npy form: {error}.") from error
    if not np.isfinite(rows).all():
        raise InvalidOption(f"{file.name!r} holds values that are not finite.", field="positions")
    return rows


Config = tuple[tuple[str, Any], ...]
Shapes = Mapping[str, tuple[int, ...]]


def layouts(model: str) -> tuple[dict[str, Any], ...]:
    """Keywords of the official layouts of a network; one empty set if those are its defaults, or there is none."""
    found: tuple[dict[str, Any], ...] = getattr(networks().get(model), LAYOUTS, ({},))
    return found


def _forms(model: str) -> dict[Config, Shapes]:
    """The shapes of all tensors in each official layout of a network; raises as `_official`."""
    found: dict[Config, Shapes] = {}
    for layout in layouts(model):
        state = _blank(model, layout).state_dict()
        found[tuple(layout.items())] = {key: tuple(tensor.shape) for key, tensor in state.items()}
    return found


def _blank(model: str, layout: Mapping[str, Any]) -> nn.Module:
    """A network without numbers: the largest layouts would fill the memory."""
    with torch.device("meta"):
        return _official(model, layout)


def _closest(state: Mapping[str, Tensor], forms: Mapping[Config, Shapes]) -> Config:
    """The layout with most tensors of the checkpoint's names and shapes, and fewest others; the first among equals."""

    def fit(config: Config) -> int:
        shapes = forms[config]
        same = sum(key in state and state[key].shape == shape for key, shape in shapes.items())
        return 2 * same - len(shapes)

    return max(forms, key=fit)


def _classes(blank: nn.Module, config: dict[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The layout with as many classes as the checkpoint has, where the network can tell (`classes_of`)."""
    count: Callable[[Mapping[str, Tensor]], int | None] | None = getattr(blank, "classes_of", None)
    found = count(state) if count is not None else None
    return config if found is None else config | {"classes": found}


def _official(model: str, config: Mapping[str, Any]) -> nn.Module:
    """The network in an official layout; what a checkpoint lacks has the same initial values every time.

    Raises:
        NotFound: There is no such network.
        InvalidOption: It has no layout of its own: its builder asks for a configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            built: nn.Module = network(model, **config)
        except TypeError as error:
            raise InvalidOption(f"{model!r} has no official layout to import into.", field="model") from error
    return built


def read_checkpoint_file(file: Path, limit: int, nested: str | None = None) -> CheckpointTensors:
    """The tensors of a checkpoint by key, a leading `module.` removed. No code of the file is run.

    It may have `limit` bytes, unpacked, which is checked before anything is read; `nested` is a further name under
    which training code puts the state dict next to its own notes.
    """
    pickled = dict.fromkeys((".pth", ".pt", ".ckpt"), _read_pickle)
    readers = {".safetensors": _read_safetensors, **pickled, ".onnx": read_initializers}
    if (reader := readers.get(file.suffix.lower())) is None:
        raise UnsupportedMedia(f"{file.name!r} is none of {', '.join(readers)}.")
    size = _unpacked_size(file)
    if size > limit:
        raise TooLarge(f"The checkpoint has {size:,} bytes, this network allows {limit:,}.")
    state = _unwrapped(reader(file), *([nested] if nested else []))
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise Malformed("The file does not hold a state dict: names → tensors.", hint="Save `model.state_dict()`.")
    held = CheckpointTensors((str(key).removeprefix("module."), tensor) for key, tensor in state.items())
    held.names = state.names if isinstance(state, CheckpointTensors) else ()
    return held


def _unwrapped(held: object, *names: str) -> object:
    """The state dict itself, where training code put it next to its own notes, as one of `names` or a usual name."""
    for name in (*names, "state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(inner := held.get(name), Mapping):
            return inner
    return held


def compare(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], idle: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
    """Missing and unexpected keys of a state dict that fits well enough to predict with.

    Keys with a prefix or ending of `idle` are never touched by a prediction, or are derived.

    Raises:
        InvalidOption: A needed tensor is missing, has another shape, or is not finite.
    """
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    needed = [key for key in missing if not (key.startswith(idle) or key.endswith((*idle, "num_batches_tracked")))]
    if needed:
        detail = f"The checkpoint lacks {len(needed)} of {len(wanted)} tensors, {_some(needed)}."
        hint = f"It has {len(unexpected)} others, {_some(unexpected)}: is it of another network?"
        raise InvalidOption(detail, hint=hint)
    shared = [key for key in wanted if key in state]
    if misfits := [key for key in shared if state[key].shape != wanted[key].shape]:
        key = misfits[0]
        found, needs = list(state[key].shape), list(wanted[key].shape)
        raise InvalidOption(f"{len(misfits)} tensors have another shape: {key} is {found}, {needs} is needed.")
    if broken := [key for key in shared if not bool(state[key].isfinite().all())]:
        raise InvalidOption(f"{len(broken)} tensors hold values that are not finite, {_some(broken)}.")
    return missing, unexpected


def _renamed(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict with prefixes of its keys changed to ours."""
    found = dict(state)
    for old, new in prefixes.items():
        found = {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in found.items()}
    return found


def _read_safetensors(file: Path) -> object:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise Malformed(f"{file.name!r} is not a safetensors file.") from error


def _read_pickle(file: Path) -> object:
    """Tensors of a torch file; a model object in it is taken apart without anything of it being run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what can't be read is refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001  # a broken file can make an unpickler raise anything
        return read_unpickled(file)


def _unpacked_size(file: Path) -> int:
    """Bytes on disk, or for a zip (torch's format) the bytes that its entries say they unpack to, if that is more."""
    size = file.stat().st_size
    try:
        if not zipfile.is_zipfile(file):
            return size
        with zipfile.ZipFile(file) as archive:
            return max(size, sum(entry.file_size for entry in archive.infolist()))
    except Exception as error:  # broken bytes lead its reader to many unrelated exceptions
        raise Malformed(f"{file.name!r} is a broken archive: {error}.") from error


def _some(keys: list[str], count: int = 4) -> str:
    """The first few keys, for people."""
    rest = f" and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + rest if keys else "none"
