"""Networks built from the weights that a Card names, without the Servable: what its answers are compared with."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.lm.bundled_models import bundled_embedder, bundled_gguf
from shared.registry import network
from shared.registry.discovery import shipped_weights
from shared.registry.weights import read_weights
from tests.contract.checks.loaded import Loaded

Arrays = Mapping[str, np.ndarray]


@cache
def known_files() -> dict[str, Path]:
    """Every file of weights that came with the packages, by the sha256 of its bytes; tests add those of toys."""
    embedder = bundled_embedder()
    files = [*shipped_weights().values(), bundled_gguf(), embedder and embedder / "model.safetensors"]
    return {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in files if file is not None}


def expected_digest(loaded: Loaded) -> str | None:
    """Digest of the weights that a Servable's class says it serves: its Card's, or those of the model's own name."""
    kind = loaded.kind
    if kind.card.weights is not None:
        return kind.card.weights
    own = shipped_weights().get(kind.card.name)
    return next((digest for digest, file in known_files().items() if file == own), None)


def weights_file(digest: str) -> Path | None:
    return known_files().get(digest)


def named_files(loaded: Loaded) -> list[Path]:
    """Files whose digests stand on the Card: as its weights, or in a note where a model has several."""
    told = " ".join([loaded.card.weights or "", *loaded.card.notes])
    return [file for digest, file in known_files().items() if digest in told and file.with_suffix(".json").is_file()]


def network_of(file: Path) -> nn.Module:
    """The network of a file, with its weights, in eval mode: built by `network()` as the manifest says."""
    weights = read_weights(file)
    spec = weights.manifest.network
    net: nn.Module = network(spec.name, **spec.config)
    net.load_state_dict({key: torch.from_numpy(array) for key, array in weights.arrays.items()})
    return net.eval().requires_grad_(requires_grad=False)


def disturbed(net: nn.Module, share: float = 0.5) -> nn.Module:
    other, draw = copy.deepcopy(net).requires_grad_(requires_grad=False), torch.Generator().manual_seed(7)
    for value in other.parameters():
        value.add_(share * value.std(correction=0) * torch.randn(value.shape, generator=draw))
    return other


def same_as_engine(loaded: Loaded, net: nn.Module, feeds: Arrays) -> str | None:
    """Name of the network's method that computes what the engine answers to `feeds`; None where there is none."""
    engine = loaded.servable.engine
    assert engine is not None
    wanted = engine.run(feeds)
    own = [kind for kind in type(net).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    names = {name for kind in own for name, thing in vars(kind).items() if callable(thing) and not name.startswith("_")}
    for name in sorted(names - {"train", "load_state_dict", "prepare"}, key=lambda name: (name != "forward", name)):
        if (found := _run(net, name, loaded, feeds)) is not None and _close(found, wanted):
            return name
    return None


def computed(loaded: Loaded, net: nn.Module, method: str) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """The network in the engine's place: takes and gives the same tensors."""

    def run(feeds: Arrays) -> dict[str, np.ndarray]:
        found = _run(net, method, loaded, feeds)
        assert found is not None, f"{method} does not take what the engine takes"
        return found

    return run


def _run(net: nn.Module, method: str, loaded: Loaded, feeds: Arrays) -> dict[str, np.ndarray] | None:
    engine = loaded.servable.engine
    assert engine is not None
    given = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in engine.inputs]
    try:
        with torch.no_grad():
            found = list(_flat(getattr(net, method)(*given)))
    except Exception:  # noqa: BLE001  # a method that takes something else is not the one
        return None
    if len(found) != len(engine.outputs):
        return None
    return {spec.name: tensor.numpy() for spec, tensor in zip(engine.outputs, found, strict=True)}


def _flat(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from _flat(list(found.values()))
    elif isinstance(found, list | tuple):
        for part in found:
            yield from _flat(part)


def _close(found: Arrays, wanted: Arrays) -> bool:
    return all(
        found[name].shape == array.shape
        and np.abs(found[name] - array).max() <= 1e-3 * max(1.0, float(np.abs(array).max()))
        for name, array in wanted.items()
    )


class ArrayNetwork(nn.Module):
    """A network that is computed in NumPy, with the state of a module: a change of it changes the network."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = [network]  # in a list, so that a copy of this module leaves the network alone
        for key, array in network._weights.items():
            value = nn.Parameter(torch.from_numpy(np.array(array)), requires_grad=False)
            self.register_parameter(key.replace(".", "/"), value)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        return {key.replace("/", "."): value for key, value in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any], *_: Any, **__: Any) -> None:  # type: ignore[override]
        self.network[0]._weights = {key: value.detach().numpy().copy() for key, value in state.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> "ArrayNetwork":
        return ArrayNetwork(self.network[0])


def _is_array_network(thing: Any) -> bool:
    arrays = vars(thing).get("_weights") if hasattr(thing, "__dict__") else None
    return isinstance(arrays, Mapping) and bool(arrays) and all(isinstance(one, np.ndarray) for one in arrays.values())


def modules_of(thing: Any) -> list[nn.Module]:
    """The networks that an object holds, however deep; parts of a network are not told apart."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting = [(thing, 0)]
    while waiting:
        one, depth = waiting.pop()
        if id(one) in seen or depth > 8:
            continue
        seen.add(id(one))
        if isinstance(one, nn.Module) or _is_array_network(one):
            found[id(one)] = one if isinstance(one, nn.Module) else ArrayNetwork(one)
            continue
        waiting += [(part, depth + 1) for part in _parts(one)]
    return list(found.values())


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, list | tuple | set):
        return list(thing)
    package = type(thing).__module__.split(".")[0]
    if package not in {"services", "shared", "tests"} and not package.startswith("fovea_"):  # the core or a plug-in
        return []
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name, None) for name in slots)]
