"""A model asks another server for the name under which `fovea export triton` writes it."""

import importlib

import pytest

from fovea.errors import NotFound
from shared.registry import LoadContext
from shared.registry.discovery import servables, services_with_models
from shared.vision.servable import VisionServable

VISION = {
    name: kind
    for service in services_with_models()
    for name, kind in servables(service).items()
    if issubclass(kind, VisionServable)
}


@pytest.mark.parametrize("name", VISION)
def test_a_model_is_asked_for_by_its_own_name(name, tmp_path, monkeypatch):
    asked = []

    def refuse(url, model, **_):
        asked.append(model)
        raise NotFound(f"There is no {model} here.")

    monkeypatch.setattr(importlib.import_module("shared.engines.triton"), "TritonEngine", refuse)
    place = LoadContext(engine="triton", cache=tmp_path, weights=tmp_path / "none", options={"triton_url": "x:1"})
    with pytest.raises(NotFound):
        VISION[name].load(place)
    assert asked == [name]
