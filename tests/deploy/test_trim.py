"""Packages that an image's environment loses; the rest still works."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("trim", ROOT / "deploy/trim.py")
trim = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(trim)


TRITON = (
    "triton/backends/nvidia/include/cuda.h",
    "triton/backends/nvidia/bin/ptxas",
    "triton/backends/nvidia/driver.c",
)
"""The compiler that Triton uses when the first kernel starts."""


def write(folder, *names):
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x" * 10)


def names_under(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}


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
    assert names_under(tmp_path) == {"a/testing/y.py", "a/__init__.py", "ray/__init__.py", *TRITON, *trim.STILL_READ}


@pytest.mark.parametrize(
    ("service", "kept"),
    [("medical-seg", {"medical_seg"}), ("gateway", set()), ("interpretability", {"medical_seg", "detection"})],
)
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
    told = subprocess.run(
        [sys.executable, "-c", ask], env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
    )
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
    monkeypatch.setattr(trim, "RAY_STARTS", ("ray.no_such_program",))
    with pytest.raises(SystemExit, match="no_such_program"):
        trim.import_what_starts("medical-seg")
