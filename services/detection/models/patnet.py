"""PATNet as it is served. The network is in `patnet_network`."""

from services.detection.servables.classifier import FEATURE_MAPS_NOTE, Classifier, claim_idle_channels
from shared.registry import Card, Metric, Paper
from shared.registry.measured import measured_card


class PATNetClassifier(Classifier):
    """PATNet, served."""

    weights = "patnet"
    card = measured_card(
        Card(
            name="patnet",
            task="classify",
            summary="Tells photographs of clothes by their kind, with attention where FasterNet leaves channels idle.",
            paper=Paper(title="Partial Convolution Meets Visual Attention", venue="arXiv", year=2025),
            licence="Code: Apache-2.0. Weights: trained on Clothing dataset (small), CC0; Apache-2.0. Published code: "
            "MIT; it comes without weights.",
            variants=("spatial", "plain"),
            variant="plain",
            metrics=(Metric(name="top_1_over_fasternet", ours=None, paper=0.013, data="ImageNet-1k", note="Size T2."),),
            notes=(
                (
                    "It tells ten kinds of clothes apart on photographs of single pieces, six of ten rightly; the "
                    "label of anything else means nothing. Its warnings were taught by smears (BCCD, MIT) and roads "
                    "(DNIT, CC BY 4.0), and catch most of these; of other kinds they miss nearly all: "
                    "see auroc_polyps, auroc_unlearnt_cells and auroc_unlearnt_pavement."
                ),
                (
                    "Learnt from 1,424 photographs and an EfficientNet-Lite0 (ImageNet) that was fine-tuned on them, "
                    "whose own figure is teacher_top_1: where size does not matter, serve the teacher. No "
                    "official weights are published."
                ),
                (
                    "Variant: the published configurations have the spatial gate (PAT_sp) in T1 alone; whether the "
                    "paper's T2 has it is undecided, since its abstract says yes and its code no. network('patnet', "
                    "spatial=True) builds every size with it."
                ),
                (
                    "Speed is measured, not promised: make bench times PATNet-T2 against FasterNet-T2 on this machine. "
                    "The small sizes gain little or nothing over FasterNet's."
                ),
                FEATURE_MAPS_NOTE,
            ),
            sparsity=claim_idle_channels("patnet"),
            example={},
        ),
        Classifier.folder,
    )
