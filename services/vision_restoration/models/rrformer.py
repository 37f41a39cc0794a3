"""RRFormer's card. The network is in `rrformer_network`, serving in `restorer`."""

from __future__ import annotations

from services.vision_restoration.restorer import Restorer
from shared.registry import Card, Metric, Paper

__all__ = ["RRFormerRestorer"]

_DATA = "200 synthetic pairs, 13 without a reflection, of sources that training never saw"


def _published(metric: str, **values: float) -> tuple[Metric, ...]:
    """The paper's numbers by data set; ours can't be set beside them: other pictures, another size of network."""
    names = {"uhd4k": "UHDRR4K", "uhd8k": "UHDRR8K", "cdr": "CDR, real"}
    note = "dB, full size." if metric == "psnr" else "Full size."
    return tuple(
        Metric(name=f"{metric}.{key}", ours=None, paper=value, data=names[key], note=note)
        for key, value in values.items()
    )


class RRFormerRestorer(Restorer):
    """RRFormer in both variants."""

    card = Card(
        name="rrformer",
        task="restore",
        summary="Takes reflections of a window pane out of a photograph of any size, in exact tiles.",
        paper=Paper(
            title="Benchmarking Ultra-High-Definition Image Reflection Removal",
            venue="arXiv",
            year=2023,
            url="https://arxiv.org/abs/2308.00265",
        ),
        licence="Code and demo weights: Apache-2.0. The authors published neither weights nor a licence.",
        variants=("paper", "released"),
        variant="paper",
        weights="c9d045a20ab0c4646bcc4dd8da98336101285923e0349f40c293f639d7739e04",
        parameters=652_446,
        metrics=(
            Metric(name="psnr", ours=18.81966, data=_DATA, note="dB, over pairs with a reflection."),
            Metric(name="psnr_identity", ours=14.24421, data=_DATA, note="The input taken as the answer."),
            Metric(name="psnr_gain", ours=4.57545, data=_DATA, note="dB over the input."),
            Metric(name="ssim", ours=0.80988, data=_DATA),
            Metric(name="ssim_identity", ours=0.74617, data=_DATA, note="The input taken as the answer."),
            Metric(name="psnr_clean", ours=24.31514, data=_DATA, note="dB, over pairs without a reflection."),
            *_published("psnr", uhd4k=24.71, uhd8k=22.41, cdr=22.33),
            *_published("ssim", uhd4k=0.971, uhd8k=0.942, cdr=0.815),
        ),
        notes=(
            (
                "The weights that come with Fovea are small and were trained on synthetic reflections. They show that "
                "the machinery works; expect little of them on real panes."
            ),
            (
                "Variants: the released code computes the transformer body and then goes on with the body's input, so "
                "that five sixths of its numbers have no effect. `released` leaves the body out, bit for bit the same; "
                "`paper` goes on with the body's result. Both read the same checkpoints."
            ),
            (
                "What the body is worth: nothing that was measured. After 750 steps on the same seed and data, "
                "`released` stood at 20.98 dB on the validation pairs and `paper` at 20.86."
            ),
            "Training was stopped by hand after 1,750 of 2,400 steps: the recipe run to its end gives other weights.",
            (
                "Tiles begin on a grid of 32 pixels and see 128 pixels beyond their core (96 in `released`): then they "
                "equal the untiled result. Memory is that of one tile; `memory_mib` chooses its size, `dry_run` tells "
                "what it takes. A whole picture of 7680×4320 pixels, 405 tiles, took 1,253 MiB above the loaded model."
            ),
            "A photograph without reflections does not come out untouched: see psnr_clean; 35 dB was the aim.",
        ),
        example={},
    )
