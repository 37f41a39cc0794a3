"""Logit-attribution experiment: the answer's logit difference as a sum over heads, MLPs, embedding and biases.

Exact with the final norm frozen ("Interpretability in the Wild", 2022, appendix). Knows one prompt; tasks of many are
studied by circuits.
"""

from pydantic import Field

from fovea_circuits.activation_cache import run_with_cache
from fovea_circuits.circuit_tasks import first_tokens
from fovea_circuits.patching import attribute_logits
from services.interpretability.attention.head_scores import top_heads
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.report import Bar, Bars, Report, Scalar, Table, head_map, head_name
from services.interpretability.core.studied_model import StudiedModel
from shared.registry import Paper


class AttributionSpec(Spec):
    """Prompt and two continuations."""

    text: str = Field(min_length=1, max_length=100_000, description="The prompt.")
    correct: str = Field(min_length=1, max_length=200, description="One continuation; its first token counts.")
    wrong: str = Field(min_length=1, max_length=200, description="The other one.")


class LogitAttribution(Experiment[AttributionSpec]):
    """Splits the logit difference of two answers into what each component writes."""

    In = AttributionSpec
    mode = "sync"
    route = "attribution"
    card = probe_card(
        "logit-attribution",
        "Splits the difference between two answers into what each head and MLP writes towards it.",
        Paper.on_arxiv(
            "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small",
            2023,
            "2211.00593",
            "ICLR",
        ),
        "Direct effects only: what a head does through other heads is found by patching.",
        text="kqzwxm kqzwx",
        correct="m",
        wrong="d",
    )

    def cost(self, spec: AttributionSpec, subject: StudiedModel) -> Cost:
        return Cost(1, len(subject.encode(spec.text)))

    def run(self, spec: AttributionSpec, subject: StudiedModel, progress: Progress) -> Report:
        answers = first_tokens(subject, [spec.correct, spec.wrong])
        run = run_with_cache(subject.model, subject.tensor([subject.encode(spec.text)]))
        parts = attribute_logits(run, subject.tensor([answers]))
        strongest = [[head_name(head), float(parts.heads[head])] for head in top_heads(parts.heads, 1.0)[:20]]
        mlps = [Bar(label=str(layer), value=float(value)) for layer, value in enumerate(parts.mlps)]
        directly = "Direct contribution of each"
        return Report(
            title="Logit attribution",
            scalars={
                "logit_diff": Scalar(value=parts.actual, unit="logits", note="Correct minus wrong."),
                "total": Scalar(value=parts.total, unit="logits", note="Sum of all parts."),
                "residual": Scalar(value=parts.actual - parts.total, unit="logits", note="Rounding; near zero."),
                "heads": Scalar(value=float(parts.heads.sum()), unit="logits"),
                "mlps": Scalar(value=float(parts.mlps.sum()), unit="logits"),
                "embedding": Scalar(value=parts.embedding, unit="logits"),
                "biases": Scalar(value=parts.biases, unit="logits"),
            },
            tables=[Table.of("heads", "head, logits", strongest, "Heads that write most, either way.")],
            grids=[
                head_map(
                    "attribution",
                    parts.heads,
                    f"{directly} head to the first answer (above 0) or the second (below).",
                    scale="diverging",
                    unit="logits",
                    text=spec.text,
                )
            ],
            bars=[Bars(name="mlps", unit="logits", bars=mlps, caption=f"{directly} layer's MLP to the first answer.")],
        )
