"""Cards of PraNet and PraNet-V2. The networks are in `pranet_network`, serving in `segmenter`."""

from pathlib import Path

from services.medical_seg.segmenter import Segmenter
from shared.registry import Card, Metric, Paper
from shared.registry.measured import measured_card
from shared.vision.servable import DataConfig

_NOT_A_DEVICE = "Not a medical device: for research only, never for diagnosis."

_MINMAX = (
    "normalise=minmax is what published evaluations do: the hottest pixel of every frame becomes 1, so that a "
    "frame without a polyp never gets an empty mask. The default thresholds the plain sigmoid."
)

_NO_CONTRAST = (
    "A frame without contrast (black, a covered lens) is answered with a warning: what is marked there means nothing, "
    "since every frame in training shows mucosa."
)


_SYNTHETIC = "400 synthetic frames that nothing else has seen, 40 of them without a polyp"
_OVER = "Mean over 256 thresholds, over frames with a polyp; the prediction is stretched to 0..1 first."


def _published(metric: str, note: str, **values: float) -> tuple[Metric, ...]:
    """The paper's numbers by data set. Ours can't be set next to them: other pictures, another size of network."""
    names = {
        "kvasir": "Kvasir",
        "clinicdb": "CVC-ClinicDB",
        "colondb": "CVC-ColonDB",
        "etis": "ETIS",
        "cvc300": "CVC-300",
    }
    return tuple(
        Metric(name=f"{metric}.{key}", ours=None, paper=value, data=names[key], note=note)
        for key, value in values.items()
    )


class PraNetSegmenter(Segmenter):
    """PraNet on EfficientNet-Lite0, trained on Kvasir-SEG, served; an imported checkpoint brings Res2Net-50."""

    weights = "pranet"
    sample = Path(__file__).with_name("frame.jpg")
    card = measured_card(
        Card(
            name="pranet",
            task="segment",
            summary="Marks polyps in a colonoscopy frame, pixel by pixel.",
            paper=Paper(
                title="PraNet: Parallel Reverse Attention Network for Polyp Segmentation",
                venue="MICCAI",
                year=2020,
                url="https://arxiv.org/abs/2006.11392",
            ),
            licence="Code: Apache-2.0. Weights: as Kvasir-SEG, which they were trained on: research and education, no "
            "commercial use without permission. Official weights: research and education only; commercial use needs "
            "the authors' formal permission.",
            variants=("efficientnet-lite0", "res2net50"),
            variant="efficientnet-lite0",
            metrics=(
                *_published(
                    "mean_dice",
                    "Full size; a later paper by the same authors has 0.628 on ETIS.",
                    kvasir=0.898,
                    clinicdb=0.899,
                    colondb=0.709,
                    etis=0.630,
                    cvc300=0.871,
                ),
                *_published(
                    "mean_iou",
                    "Full size; a later paper by the same authors has 0.567 on ETIS.",
                    kvasir=0.840,
                    clinicdb=0.849,
                    colondb=0.640,
                    etis=0.460,
                    cvc300=0.797,
                ),
            ),
            notes=(
                _NOT_A_DEVICE,
                (
                    "The weights were trained by `fovea train pranet` on frames of one hospital's data set, most of "
                    "which show a polyp. Frames of other hospitals and instruments look different."
                ),
                _MINMAX,
                (
                    "Probabilities are those of the logits over a temperature, and components in which no pixel "
                    "reaches a peak are dropped: both were chosen on training frames that were set aside. `min_peak=0` "
                    "keeps them all."
                ),
                _NO_CONTRAST,
                (
                    "Variants: EfficientNet-Lite0 stands in for Res2Net-50, since its ImageNet weights fit into eight "
                    "megabytes. The official layout is the network `pranet`: `fovea import pranet FILE` serves an "
                    "official checkpoint in place of these weights."
                ),
                (
                    "The loss is the paper's, in which pixels near edges weigh more in the cross-entropy. In the "
                    "released code those weights cancel; official weights were trained that way."
                ),
            ),
            example={"threshold": 0.5},
        ),
        Segmenter.folder,
    )

    @classmethod
    def describe(cls, card: Card, config: DataConfig) -> Card:
        variant = "res2net50" if config.familiar is None else "efficientnet-lite0"
        return super().describe(card, config).model_copy(update={"variant": variant})


class PraNetV2Segmenter(Segmenter):
    """PraNet-V2 with one class, served."""

    weights = "pranet-v2"
    card = Card(
        name="pranet-v2",
        task="segment",
        summary="Marks drawn polyps; trained on background and foreground of synthetic frames at once.",
        paper=Paper(
            title="PraNet-V2: Dual-Supervised Reverse Attention for Medical Image Segmentation",
            venue="arXiv",
            year=2025,
            url="https://arxiv.org/abs/2504.10986",
        ),
        licence="Code and demo weights: Apache-2.0. Official weights: MIT.",
        weights="abde40d1d3b451da1714bcf3660e5205efb9a5e4b6486a83cb78753fc99d82a3",
        parameters=2_060_446,
        metrics=(
            *(
                Metric(name=name, ours=ours, data=_SYNTHETIC, note=note)
                for name, ours, note in (
                    ("dice_at_half", 0.94805, "At 0.5, over frames with a polyp."),
                    ("mean_dice", 0.94339, _OVER),
                    ("mean_iou", 0.89967, _OVER),
                    ("empty_with_any_pixel", 0.0, "Share of polyp-free frames in which any pixel reaches 0.5."),
                )
            ),
            *_published(
                "mean_dice", "Full size, Res2Net backbone.", kvasir=0.907, clinicdb=0.923, etis=0.641, cvc300=0.898
            ),
        ),
        notes=(
            _NOT_A_DEVICE,
            (
                "The weights that come with Fovea were trained on synthetic frames at a quarter of the width. They "
                "show that the machinery works; they do not find polyps in real endoscopy: `pranet` does, and official "
                "weights can be imported."
            ),
            _MINMAX,
            _NO_CONTRAST,
            (
                "With one class (K = 1), as here, the attention's softmax over classes is 1 everywhere: it doubles "
                "each foreground map and nothing more. Disturbing every source of attention changes the refined maps "
                "by exactly 0.0. The variant matters with two classes or more; what differs here is the "
                "training on background maps."
            ),
        ),
        example={"threshold": 0.5},
    )
