"""Graphs that are kept for later runs have another name when anything of theirs changes."""

from dataclasses import replace

import pytest

from shared.registry.weights import read_weights
from tests.contract.toys import write_toy
from tests.harness import graphs
from tests.harness.graphs import imported_files, name_graph


@pytest.fixture
def forms(tmp_path):
    kind = write_toy("family-actions", tmp_path / "toys")
    weights = read_weights(tmp_path / "toys/family-actions.safetensors")
    return lambda name: kind.artifacts(weights, kind.data_config(weights), tmp_path / name)


def test_other_wishes_and_code_have_another_name_and_code_is_what_a_network_imports(forms, monkeypatch):
    plain = forms("one")
    assert name_graph(plain) == name_graph(forms("elsewhere"))
    others = [replace(plain, call="forward"), replace(plain, outputs=plain.outputs[::-1]), replace(plain, tag="v9")]
    names = {name_graph(one) for one in (plain, *others)}
    monkeypatch.setattr(graphs, "digest_code", lambda _modules: "other code")
    assert len(names | {name_graph(plain)}) == 5
    files = imported_files("services.medical_seg.models.pranet_network")
    found = {str(file.relative_to(graphs.ROOT)) for file in files}
    assert {"services/medical_seg/models/res2net.py", "services/medical_seg/models/pranet_network.py"} <= found
    assert not found & {"shared/settings.py", "services/medical_seg/segmenter.py"}
