"""FasterNet as it is served. The network is in `fasternet_network`."""

from services.detection.servables.classifier import FEATURE_MAPS_NOTE, Classifier, claim_idle_channels
from shared.registry import Card, Metric, Paper
from shared.registry.measured import measured_card


class FasterNetClassifier(Classifier):
    """FasterNet, served."""

    weights = "fasternet"
    card = measured_card(
        Card(
            name="fasternet",
            task="classify",
            summary="Tells photographs of clothes by their kind with partial convolutions; the baseline of patnet.",
            paper=Paper(
                title="Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks",
                venue="CVPR",
                year=2023,
                url="https://arxiv.org/abs/2303.03667",
            ),
            licence="Code: Apache-2.0. Weights: trained on Clothing dataset (small), CC0; Apache-2.0. "
            "Official weights: MIT.",
            metrics=tuple(
                Metric(name=f"top_1.{size}", ours=None, paper=value, data="ImageNet-1k", note="Full training, 224 px.")
                for size, value in (("t0", 0.719), ("t1", 0.762), ("t2", 0.789), ("s", 0.813))
            ),
            notes=(
                (
                    "It tells ten kinds of clothes apart on photographs of single pieces; the label of anything else "
                    "means nothing. Its warnings were taught by smears (BCCD, MIT) and roads (DNIT, CC BY 4.0), and "
                    "catch most of these; of other kinds they miss nearly all: see auroc_polyps, auroc_unlearnt_cells "
                    "and auroc_unlearnt_pavement."
                ),
                (
                    "Learnt as patnet did, from 1,424 photographs and an EfficientNet-Lite0 (ImageNet) that was "
                    "fine-tuned on them, whose own figure is teacher_top_1: where size does not matter, serve the "
                    "teacher. Official weights tell ImageNet's classes by number: they carry no names."
                ),
                FEATURE_MAPS_NOTE,
            ),
            sparsity=claim_idle_channels("fasternet"),
            example={},
        ),
        Classifier.folder,
    )
