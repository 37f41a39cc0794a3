"""Every study on a pretended device answers as on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.interpretability.core.experiment import Experiment
from shared.registry import CallContext, LoadContext, servables
from tests.contract.checks.experiments import found_in
from tests.contract.sameness import differences
from tests.device.pretend_cuda import CUDA, PretendCuda

STUDIES = {name: kind for name, kind in servables("interpretability").items() if issubclass(kind, Experiment)}


def answer(kind, folder: Path, device: str):
    study = kind.load(LoadContext(cache=folder, weights=folder / "weights", threads=1, device=device))
    return study.predict([study.example()], CallContext())[0]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_answers_as_on_a_cpu(name, tmp_path):
    wanted = answer(STUDIES[name], tmp_path / "cpu", "cpu")
    with PretendCuda().active():
        found = answer(STUDIES[name], tmp_path / "cuda", "cuda")
    assert not isinstance(wanted, Exception)
    assert not isinstance(found, Exception), found
    assert found.manifest.device == str(CUDA)
    assert not differences(found_in(wanted), found_in(found), tolerance=1e-3)
