"""RRFormer's card. The network is in `rrformer_network`, serving in `restorer`."""

from services.vision_restoration.restorer import Restorer
from services.vision_restoration.weights_loading import WHOLE
from shared.registry import Card, Metric, Paper
from shared.registry.measured import measured_card


def _published(metric: str, **values: float) -> tuple[Metric, ...]:
    """The paper's numbers by data set; ours can't be set next to them: other pictures, another size of network."""
    names = {"uhd4k": "UHDRR4K", "uhd8k": "UHDRR8K", "cdr": "CDR, real"}
    note = "dB, full size." if metric == "psnr" else "Full size."
    return tuple(
        Metric(name=f"{metric}.{key}", ours=None, paper=value, data=names[key], note=note)
        for key, value in values.items()
    )


class RRFormerRestorer(Restorer):
    """RRFormer in both variants."""

    card = measured_card(
        Card(
            name="rrformer",
            task="restore",
            summary="Takes reflections of a window pane out of a photograph of any size, in exact tiles.",
            paper=Paper(
                title="Benchmarking Ultra-High-Definition Image Reflection Removal",
                venue="arXiv",
                year=2023,
                url="https://arxiv.org/abs/2308.00265",
            ),
            licence="Code: Apache-2.0, written from a description. Weights: trained on CC0 and CC BY photographs; "
            "Apache-2.0 with attribution of these. The authors published neither weights nor a licence.",
            variants=("paper", "released"),
            variant="paper",
            metrics=(
                *_published("psnr", uhd4k=24.71, uhd8k=22.41, cdr=22.33),
                *_published("ssim", uhd4k=0.971, uhd8k=0.942, cdr=0.815),
            ),
            notes=(
                (
                    "Small, trained for few steps, and careful: it takes away what it is sure of, often little. "
                    "psnr_gain is its gain over the picture as it came, harmed the share of pairs that lose more than "
                    ".5 dB, psnr_clean what a photograph without one keeps. Pictures only made darker gain as much."
                ),
                (
                    "Photographs are real, reflections on them are made: by the paper's formulas and by a pane that "
                    "reflects twice, in places, with a tint and a veil. No pair of a real pane was seen or measured."
                ),
                (
                    "Answers have no `warnings`: a reflection may lie on a photograph of anything, so that no picture "
                    "is of the wrong kind. Where there is none, nearly all of it stays (psnr_clean); of a black, "
                    "grey or white one 2 to 3 of 255 levels are changed on average. Look at both "
                    "(`include=comparison`) before you keep a result."
                ),
                (
                    "Variants: the released code computes the transformer body and then goes on with the body's input, "
                    "so that five sixths of its numbers have no effect. `released` leaves the body out, bit for bit "
                    "the same; `paper` goes on with the body's result. Both read the same checkpoints."
                ),
                (
                    "Tiles begin on a grid of 32 pixels and see 128 pixels beyond their core (96 in `released`): then "
                    "they equal the untiled result. Memory is that of one tile; `memory_mib` chooses its size, "
                    "`dry_run` tells what it takes. Pictures of more than 2 megapixels are worked on in a copy of "
                    "that size, and the change is carried over; `resolution=full` looks at every pixel: 7680×4320 "
                    "pixels, 405 tiles, took 1,253 MiB above the loaded model."
                ),
            ),
            example={},
        ),
        Restorer.folder,
        WHOLE,
    )
