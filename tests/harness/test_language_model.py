"""The shared language model is converted once, however many processes ask, and again when file or code change."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from services.llm_longctx.serving import weight_format
from shared.lm import bundled_models
from tests.harness import language_model


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Folders that were converted into; the model is three bytes."""
    found = []

    def convert(file, folder, weights):
        assert file.read_bytes(), weights
        (folder / "lm").mkdir(parents=True)
        found.append(folder)

    (tmp_path / "m.gguf").write_bytes(b"one")
    monkeypatch.setattr(language_model, "FOLDER", tmp_path / "shared")
    monkeypatch.setattr(weight_format, "load_weights", convert)
    monkeypatch.setattr(bundled_models, "bundled_gguf", lambda: tmp_path / "m.gguf")
    return found


def convert_anew(_=None):
    return language_model._convert.__wrapped__("fp32")


def test_several_at_once_convert_once(made):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(convert_anew, range(8)))
    assert folders == set(made)
    assert len(made) == 1


def test_other_code_is_converted_anew(made, tmp_path, monkeypatch):
    code = tmp_path / "code.py"
    monkeypatch.setattr(language_model, "CONVERTERS", [str(code)])
    for text in ("a = 1", "a = 2"):
        code.write_text(text)
        convert_anew()
    assert len(set(made)) == 2
