"""The planner as it is served: what there is to say about it.

Solvers and proofs are in `fovea_planning.solvers`; the networks that propose in `pointer_net`.
"""

from fovea_planning.servables.planner import Planner
from shared.registry import Card, Metric, Paper

_DATA = "1000 synthetic sets of uniform points that nothing else has seen"


def _measured() -> tuple[Metric, ...]:
    """Measurements of the networks alone, before their answers are checked or improved."""
    hulls = (
        Metric(name=f"exact_n{n}", ours=ours, paper=paper, data=_DATA,
               note=f"Share of hulls of {n} points that are exactly right. Paper's figure from memory.")
        for n, ours, paper in ((5, 0.986, 0.92), (8, 0.965, None), (10, 0.95, 0.87), (20, 0.81, None))
    )  # fmt: skip
    tours = (
        Metric(
            name=f"ratio_beam8_n{n}",
            ours=ours,
            data=_DATA,
            note=f"Mean length over the optimum, tours of {n} points, best of 8.",
        )
        for n, ours in ((5, 1.0), (8, 1.00002), (10, 1.00004))
    )
    return *hulls, *tours


class FoveaPlanner(Planner):
    """Hulls, triangulations and closed tours."""

    weights = ("fovea-pointer-hull", "fovea-pointer-tour")
    card = Card(
        name="fovea-planner",
        task="plan",
        summary="Plans over points or detections: hull of a cluster, neighbours, inspection route; verified.",
        paper=Paper(title="Pointer Networks", venue="NeurIPS", year=2015, url="https://arxiv.org/abs/1506.03134"),
        licence="Code and weights: Apache-2.0. The authors published neither code nor weights.",
        weights="3a8d18b14ccd49b9d283491d782c76038080c3ce2bbce61410fb33fdbbc139b3",
        parameters=383_872,
        metrics=_measured(),
        notes=(
            (
                "No answer is trusted because a network gave it: a learned hull counts only where Qhull's is the same, "
                "a tour is improved by 2-opt and Or-opt and compared with a lower bound that no tour falls below."
            ),
            (
                "Up to 10 points tours are proven shortest. Beyond, 2-opt, Or-opt and kicks run until the time limit. "
                "Of the 48 public instances of 20 and 50 points 16 were tried: all gave the best known tour in 0.5 s."
            ),
            (
                "A learned tour is of use in large batches of small sets only; for one the exact solver is as fast. "
                "The networks are never asked outside of 5 to 10 points."
            ),
            "There is no ONNX graph: a step of the network depends on what the step before pointed at.",
        ),
        example={
            "task": "tsp",
            "points": [[0.1, 0.2], [0.9, 0.1], [0.8, 0.8], [0.5, 0.4], [0.2, 0.9], [0.6, 0.6], [0.3, 0.5]],
        },
    )  # fmt: skip
