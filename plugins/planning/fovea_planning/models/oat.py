"""OAT as it is served: what there is to say about it.

The network is in `object_attention`; how a request becomes an answer is in `servables.scanpath_predictor`.
"""

from fovea_planning.servables.scanpath_predictor import ScanpathPredictor
from shared.registry import Card, Metric, Paper

_DATA = "500 searches of synthetic 3x9 shelves that nothing else has seen, by a policy whose rates are known"


class OatScanpathPredictor(ScanpathPredictor):
    """OAT, served."""

    weights = "oat"
    card = Card(
        name="oat",
        task="scanpath",
        summary="Predicts in which order a person looks at the objects of a shelf while searching for one of them.",
        paper=Paper.on_arxiv(
            "OAT: Object-Level Attention Transformer for Gaze Scanpath Prediction", 2024, "2407.13335", venue="ECCV"
        ),
        licence="Code and demo weights: Apache-2.0. The authors' code has no licence file, and they published no "
        "weights: all rights reserved.",
        weights="1e2402428bddef3352b1dc08b0a37553dca111107584302f296dee90a2949ba8",
        parameters=742_592,
        metrics=(
            Metric(
                name="behaviour_delta",
                ours=0.77215,
                data=_DATA,
                note="Drawn paths against true ones: mean relative difference of five averages; less is better. "
                "Target 0.25 at most. A second draw of the policy itself has 0.0196.",
            ),
            Metric(
                name="sequence_score",
                ours=0.28323,
                data=_DATA,
                note="Likeliest path against the true one; a second draw of the policy has 0.21394.",
            ),
            Metric(
                name="found",
                ours=0.938,
                data=_DATA,
                note="Share of drawn paths that end on the target; of the true ones 0.878.",
            ),
            Metric(name="length", ours=7.334, data=_DATA, note="Fixations; of the true paths 8.404."),
        ),
        notes=(
            (
                "Fovea's weights are trained on a made-up searcher on drawn glyphs. They show that the "
                "machinery works and say nothing about people; their crops are 48x32 pixels."
            ),
            (
                "Known weakness: drawn paths come back to objects more often than the true ones (0.058 instead of "
                "0.013 of all looks), most of the behaviour delta; the likeliest path is too short (1.5 looks)."
            ),
            (
                "Objects become a grid: boxes whose middles differ in height by less than half the median height share "
                "a row. Missing cells are never looked at. Up to 24 rows and columns; trained on at most 4 by 10."
            ),
        ),
        example={"target": 24, "mode": "sampled", "max_fixations": 20},
    )
