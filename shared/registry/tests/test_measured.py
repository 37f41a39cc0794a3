"""Figures of a manifest say on what they were measured, and on how much of it."""

from shared.registry.measured import measured_metrics
from shared.registry.weights import Manifest, NetworkSpec


def manifest(data: dict[str, str], **metrics: float) -> Manifest:
    return Manifest(name="net", origin="trained", network=NetworkSpec(name="net"), data=data, metrics=metrics)


def test_a_figure_says_how_many_crops_there_were_and_what_the_warning_learnt_from():
    real = {"measured_on": "Kvasir-SEG (real), 100 held-out pictures"}
    dice, clean = measured_metrics(manifest(real, dice=0.9, clean_crops=1.0, crops=58.0))
    assert dice.data == "Kvasir-SEG (real), 100 held-out pictures"
    assert clean.data == "Kvasir-SEG (real), 100 held-out pictures, 58 crops of them"
    facts = manifest({"measured_on": "clothes (real), 9 held-out pictures"}, auroc_cells=1.0, auroc_unlearnt_cells=0.8)
    learnt, unlearnt = measured_metrics(facts.model_copy(update={"recipe": {"foreign": ["cells"]}}))
    assert learnt.data.endswith("against pictures of cells, others of which were learnt")
    assert unlearnt.data.endswith("against pictures of cells, none of which was learnt")
