"""One folder of exported ONNX graphs for all processes of a run and for later runs.

A graph follows from its weights, from how it was asked for, and from the code that builds and traces the network. All
three are in its name here: a change of any of them exports it anew, a change of anything else does not. The product
looks into its own cache folder first, as always; only the export itself is answered from here.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

from shared.export.artifacts import ExportedForms
from shared.export.parity import Parity
from shared.registry import networks
from tests.harness.language_model import locked

ROOT = Path(__file__).parents[2]

FOLDER = "FOVEA_TEST_GRAPHS"
"""Environment variable that names the folder, for a copy of the tree that shares the folder of the original."""

KEPT_DAYS = 30
"""Graphs that no run used for so long are removed."""

_ELSEWHERE = ("errors", "settings", "sparsity", "storage", "telemetry")
"""Modules of `shared` that compute no tensor: a change there leaves graphs as they are."""

_IMPORT = re.compile(r"^\s*from ((?:services|shared)[.\w]*) import (\([^)]*\)|[^#\n]*)", re.MULTILINE)
_export = ExportedForms._export


@cache
def imported_files(start: str) -> frozenset[Path]:
    """Source files of this repository that a module is made of: its own, and those that it imports."""
    found, waiting = set[Path](), [start]
    while waiting:
        module = waiting.pop()
        if module.split(".")[:2] in [["shared", name] for name in _ELSEWHERE]:
            continue
        path = ROOT / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file in found or not file.is_file():
            continue
        found.add(file)
        for name, parts in _IMPORT.findall(file.read_text("utf8")):
            waiting += [name, *(f"{name}.{part}" for part in re.findall(r"\w+", parts))]
    return frozenset(found)


@cache
def digest_code(modules: tuple[str, ...]) -> str:
    """Digest of modules, of all that they import from this repository, and of the libraries that export."""
    files = sorted({file for module in modules for file in imported_files(module)})
    parts = [f"{name} {metadata.version(name)}" for name in ("torch", "onnx", "onnxruntime")]
    parts += [f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def name_graph(forms: ExportedForms) -> str:
    """Name of a graph without its ending: the product's name for it, how it was asked for, and the code."""
    manifest, changes = forms.weights.manifest, [one for one in (forms.prepare, forms.sample) if one is not None]
    names = [getattr(one, "__qualname__", type(one).__qualname__) for one in changes]
    asked = [manifest.network, forms.inputs, forms.outputs, forms.call, forms.shapes, *names]
    modules = {networks()[manifest.network.name].__module__, *(one.__module__ for one in changes)}
    code = digest_code(("shared.export.torch_form", *sorted(modules)))
    key = hashlib.sha256(f"{asked} {code}".encode()).hexdigest()
    return f"{manifest.name}-{manifest.sha256[:16]}-{forms.tag}-{key[:16]}"


def copy(source: Path, target: Path) -> None:
    """Put a copy in place, whole or not at all; no link, because tests damage the graphs that they get."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, draft)
    draft.replace(target)


class GraphFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for file in (*folder.glob("*.onnx"), *folder.glob("*.json")):
            with suppress(FileNotFoundError):  # another worker removes it, too
                if file.stat().st_mtime < time.time() - KEPT_DAYS * 24 * 3600:
                    file.unlink()

    def export(self, forms: ExportedForms) -> Parity:
        """Put the graph of some weights where the product wants it; stands in for `ExportedForms._export`."""
        if type(forms) is not ExportedForms or forms.weights.manifest.network.name not in networks():
            return _export(forms)  # a test's own network, whose code is not known here
        target = forms._graph
        kept = self.folder / f"{name_graph(forms)}.onnx"
        facts = kept.with_suffix(".json")
        with locked(kept.with_suffix(".lock")):
            if not facts.exists():  # written last
                parity = _export(forms)
                copy(target, kept)
                draft = facts.with_suffix(f".{os.getpid()}")
                draft.write_text(json.dumps(asdict(parity)), "utf8")
                draft.replace(facts)
                return parity
            copy(kept, target)
            for file in (kept, facts):
                os.utime(file)
        return Parity(**json.loads(facts.read_text("utf8")))


@pytest.fixture(scope="session", autouse=True)
def graph_folder(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GraphFolder]:
    """The folder; every export in this process is answered from it while the session lasts."""
    cache, place = getattr(pytestconfig, "cache", None), os.environ.get(FOLDER)
    if place is None:
        place = str(cache.mkdir("graphs") if cache is not None else tmp_path_factory.mktemp("graphs"))
    found = GraphFolder(Path(place))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, place)
        patch.setattr(ExportedForms, "_export", lambda forms: found.export(forms))  # noqa: PLW0108  # becomes a method
        yield found


@pytest.fixture
def fresh_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExportedForms, "_export", _export)


@pytest.fixture(scope="session")
def exported_graphs(graph_folder: GraphFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the graphs of all packaged vision models: products that get it as `FOVEA_GRAPHS_DIR` export none."""
    from shared.registry.discovery import servables, services_with_models
    from shared.registry.weights import find_weights, read_weights
    from shared.vision.servable import VisionServable

    folder = tmp_path_factory.mktemp("exported")
    for service in services_with_models():
        for kind in servables(service).values():
            if issubclass(kind, VisionServable):
                weights = read_weights(find_weights(kind.weights, kind.folder, folder))
                for forms in kind.all_artifacts(weights, kind.data_config(weights).with_facts_of(weights), folder):
                    forms.graph()
    return folder
