"""BMN, and BMN with class-semantics attention, as they are served: what there is to say about each.

The networks are in `boundary_matching`; how a request becomes an answer is in `servables.action_detector`.
"""

from fovea_actions.action_detector import ActionDetector
from shared.registry import Card, Metric, Paper

_DATA = "400 synthetic videos that nothing else has seen, 8 classes; proposals times a noisy recogniser's scores"

_NOTES = (
    ( "The weights that come with Fovea were trained on synthetic features of 64 channels over 32 cells. They show "
    "that the machinery works; they find nothing in features of a real backbone. Train or import weights for that." ),
    ( "No video backbone is served: send the features of your own. Any number of steps is resampled to the cells of "
    "the network; a proposal never reaches the very end of the video, as in the published inference." ),
)  # fmt: skip


def _measured(average_map: float, map_50: float, ar_100: float, spread: str) -> tuple[Metric, ...]:
    """Our numbers, from the manifest of the weights, and over all seeds in the note."""
    return (
        Metric(name="average_map", ours=average_map, data=_DATA, note=f"Mean over tIoU 0.5:0.05:0.95. {spread}"),
        Metric(name="map_50", ours=map_50, data=_DATA, note="mAP at tIoU .5."),
        Metric(name="ar_100", ours=ar_100, data=_DATA, note="Recall of the best 100 proposals, tIoU 0.5:0.05:0.95."),
    )


class BmnActionDetector(ActionDetector):
    """BMN, served: from features alone."""

    weights = "bmn"
    takes_semantics = False
    card = Card(
        name="bmn",
        task="actions",
        summary="Finds where in a video something begins and ends, from features of the caller's own backbone.",
        paper=Paper.on_arxiv(
            "BMN: Boundary-Matching Network for Temporal Action Proposal Generation", 2019, "1907.09702", venue="ICCV"
        ),
        licence="Code and demo weights: Apache-2.0. Public checkpoints that can be imported: MIT.",
        weights="792175454c46f7f8bc61be7ec4bdf9a9fde3e5fd794d177e07a987c28bf22da7",
        parameters=309_988,
        metrics=_measured(0.35447, 0.55409, 0.93702, "Seeds 1 to 3: 0.354, 0.337, 0.323; mean 0.338."),
        notes=(
            *_NOTES,
            (
                "The convolution is done before the sampling: both are linear, so the answer is the same to rounding, "
                "for a sixth of the multiplications at full size. The sampling weights are generated, never stored."
            ),
        ),
        example={"duration": 32.0, "max_proposals": 10},
    )


class BmnCsaActionDetector(ActionDetector):
    """BMN with class-semantics attention, served: features and semantics."""

    weights = "bmn-csa"
    takes_semantics = True
    card = Card(
        name="bmn-csa",
        task="actions",
        summary="As BMN, and what a recogniser knows of the classes decides which features count, and when.",
        paper=Paper.on_arxiv("Class Semantics-based Attention for Action Detection", 2021, "2109.02613", venue="ICCV"),
        licence="Code and demo weights: Apache-2.0. The authors published no code and no weights.",
        weights="2c74c712d2da20ec0d66fd52a39b3c80c03d4eaee0dbf10ffbb6db6a0466a6e0",
        parameters=311_501,
        metrics=(
            *_measured(0.37857, 0.57086, 0.94245, "Seeds 1 to 3: 0.379, 0.359, 0.340; mean 0.359."),
            Metric(
                name="thumos14_map",
                ours=None,
                paper=47.5,
                data="THUMOS-14",
                note="At tIoU 0.5 by the usual convention; the abstract does not state it. 6.2 above the authors' BMN.",
            ),
            Metric(name="activitynet_average_map", ours=None, paper=36.25, data="ActivityNet-1.3"),
        ),
        notes=(
            *_NOTES,
            (
                "The inside of the attention is our reading of the paper: mean, spread and maximum of the semantics "
                "over time weigh the channels, a convolution over them weighs the cells; F + F·a_c + F·a_t."
            ),
            (
                "Gain by the attention here: +0.021 average mAP over BMN as a mean of three seeds on the same "
                "videos (+0.024, +0.022, +0.017); the recogniser's scores label the proposals of both alike."
            ),
        ),
        example={"duration": 32.0, "max_proposals": 10},
    )
