"""Every vision model in torch on a pretended device answers as on a CPU."""

from contextlib import closing
from pathlib import Path

import pytest

from shared.registry import CallContext, LoadContext, servables
from tests.contract.sameness import differences
from tests.device.pretend_cuda import PretendCuda

SERVICES = ("vision-restoration", "medical-seg", "detection")
ON_CPU = {"fovea-planner": "a network of ten points, a step at a time, is sooner done than sent"}
"""Models that stay on the CPU, each with its reason."""

MODELS = {name: kind for service in SERVICES for name, kind in servables(service).items()}


def answer(kind, folder: Path, device: str):
    context = LoadContext(cache=folder, weights=folder / "weights", threads=1, device=device, engine="torch")
    with closing(kind.load(context)) as model:
        return model.predict([model.example()], CallContext())[0]


@pytest.mark.parametrize("name", MODELS)
def test_every_vision_model_answers_as_on_a_cpu(name, tmp_path):
    wanted = answer(MODELS[name], tmp_path, "cpu")
    with PretendCuda().active() as device:
        found = answer(MODELS[name], tmp_path, "cuda")
    assert bool(device.copies) != (name in ON_CPU), "where its network was"
    assert not isinstance(found, Exception), found
    assert not differences(wanted, found, tolerance=1e-3)
