"""HieraEdgeNet on blood smears: what there is to say about weights that were trained on real pictures."""

from pathlib import Path

from services.detection.models.hieraedgenet import HieraEdgeNetBoxDetector
from shared.registry import Card
from shared.registry.measured import measured_card


class HieraEdgeNetCellsBoxDetector(HieraEdgeNetBoxDetector):
    """HieraEdgeNet, trained on blood smears, served."""

    weights = "hieraedgenet-cells"
    imports = None
    sample = Path(__file__).with_name("smear.jpg")
    card = measured_card(
        Card(
            name="hieraedgenet-cells",
            task="detect",
            summary="Finds and counts red cells, white cells and platelets on photographs of blood smears.",
            paper=HieraEdgeNetBoxDetector.card.paper,
            licence="Code: Apache-2.0, written from a description. Weights: trained on BCCD (MIT); Apache-2.0 with "
            "attribution of BCCD.",
            variants=("described", "official"),
            variant="described",
            notes=(
                "Not a medical device: for research only, never for diagnosis.",
                (
                    "Trained on 185 photographs of BCCD (640×480, one laboratory, one stain), measured on 87 others. "
                    "Smears of another magnification or stain look different: the answer warns where its features are "
                    "far from those that it knows."
                ),
                (
                    "BCCD leaves some visible cells without a box: precision is a lower bound, and scores, which are "
                    "calibrated on such labels, are too low rather than too high."
                ),
                (
                    "Scores are calibrated, and `confidence` left out takes the score at which counts are least wrong; "
                    "both were chosen on 44 of the 87 held-out pictures, and are measured on the other 43."
                ),
                (
                    "Trained from the drawn-pollen weights by `fovea train hieraedgenet-cells`; the paper's own figure "
                    "(.950 at an IoU of .5) is on 120 classes of pollen, which is another task."
                ),
            ),
            example={},
        ),
        HieraEdgeNetBoxDetector.folder,
    )
