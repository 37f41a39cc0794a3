"""Every study, and every vision model in torch, answers on a pretended device as on a CPU."""

from contextlib import closing
from pathlib import Path

import pytest

from services.interpretability.core.experiment import Experiment
from shared.registry import CallContext, LoadContext, servables
from tests.contract.checks.experiments import Machines, found_in
from tests.contract.sameness import differences
from tests.device.pretend_cuda import CUDA, PretendCuda
from tests.harness.hypothesis_profiles import in_depth

ON_CPU = {
    "sparsity": "its claims are of processors: it times networks of all kinds on the one that it names",
    "fovea-planner": "a network of ten points, a step at a time, is sooner done than sent",
}
"""Studies and models that stay on the CPU, each with its reason."""

VISION = ("vision-restoration", "medical-seg", "detection")
MODELS = {name: kind for service in VISION for name, kind in servables(service).items()}
STUDIES = {name: kind for name, kind in servables("interpretability").items() if issubclass(kind, Experiment)}


ALIKE = {"acdc", "deconstruction-study", "head-plans", "sparsity", "yolo9tr", "hieraedgenet-synthetic-pollen",
         "fasternet", "bmn-csa", "pranet-v2"}  # fmt: skip
"""Studies and models run before a release: others, and kinds of head plans, stand for their code on a device."""


def answer(study_type, folder: Path, device: str, **options):
    study = study_type.load(LoadContext(cache=folder, weights=folder / "weights", threads=1, device=device))
    return study.predict([Machines(study_type, folder).example.model_copy(update=options)], CallContext())[0]


def answers_alike(study_type, folder: Path, **options):
    """The report of a pretended device, which says the same as a CPU's."""
    wanted = answer(study_type, folder / "cpu", "cpu", **options)
    with PretendCuda().active():
        found = answer(study_type, folder / "cuda", "cuda", **options)
    assert not isinstance(wanted, Exception), wanted
    assert not isinstance(found, Exception), found
    assert not differences(found_in(wanted), found_in(found), tolerance=1e-3)
    return found


@pytest.mark.parametrize("name", in_depth(STUDIES, STUDIES.keys() - ALIKE))
def test_every_study_answers_as_on_a_cpu(name, tmp_path):
    assert answers_alike(STUDIES[name], tmp_path).manifest.device == ("cpu" if name in ON_CPU else str(CUDA))


@pytest.mark.parametrize("kind", ["razor", "act", "statistic"])
def test_every_kind_of_head_plan_is_made_as_on_a_cpu(kind, tmp_path):
    size = {"period": 40, "repeats": 2, "samples": 3, "check": 3, "candidates": 3, "skip": 0, "facts": 4}
    answers_alike(STUDIES["head-plans"], tmp_path, kind=kind, **size)


def predict(kind, folder: Path, device: str):
    context = LoadContext(cache=folder, weights=folder / "weights", threads=1, device=device, engine="torch")
    with closing(kind.load(context)) as model:
        return model.predict([model.example()], CallContext())[0]


@pytest.mark.parametrize("name", in_depth(MODELS, MODELS.keys() - ALIKE))
def test_every_vision_model_answers_as_on_a_cpu(name, tmp_path):
    wanted = predict(MODELS[name], tmp_path, "cpu")
    with PretendCuda().active() as device:
        found = predict(MODELS[name], tmp_path, "cuda")
    assert bool(device.copies) != (name in ON_CPU), "where its network was"
    assert not isinstance(found, Exception), found
    assert not differences(wanted, found, tolerance=1e-3)
