"""An experiment: how surprised the model is by each token of a text."""

from typing import ClassVar

import torch
from pydantic import Field

from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.report import Report, Scalar
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Card, Paper


class ToySurpriseSpec(Spec):
    """A text."""

    text: str = Field("the cat sat on the mat", min_length=2, max_length=2000, description="Read token by token.")


class ToySurprise(Experiment[ToySurpriseSpec]):
    """Measures the mean surprise."""

    In = ToySurpriseSpec
    mode = "sync"
    route: ClassVar[str] = "toy-surprise"
    card: ClassVar[Card] = Card(
        name="toy-surprise", task="probe", licence="Apache-2.0",
        summary="Measures how surprised a model is by a text.",
        paper=Paper(title="Surprise", venue="none", year=2026), notes=(NO_GRAPH,),
        example={"lm": EXAMPLE_LM, "text": "the cat sat on the mat"},
    )  # fmt: skip

    def cost(self, spec: ToySurpriseSpec, subject: StudiedModel) -> Cost:
        """One forward."""
        return Cost(1, len(subject.encode(spec.text)))

    def run(self, spec: ToySurpriseSpec, subject: StudiedModel, progress: Progress) -> Report:
        """Mean negative log-probability of each token after the first, nats."""
        ids = subject.tensor([subject.encode(spec.text)])
        with torch.no_grad():
            logits = subject.model(ids)[0].double().log_softmax(-1)
        surprise = -logits[:-1].gather(-1, ids[0, 1:, None]).mean()
        return Report(title="Surprise", scalars={"surprise": Scalar(value=float(surprise), unit="nats")})
