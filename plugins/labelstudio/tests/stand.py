"""A Fovea, a Label Studio's files and a backend between them, for tests of annotation."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from starlette.testclient import TestClient

from fovea_labelstudio.backend import LabelStudioBackend, build_backend_app
from fovea_labelstudio.label_studio import LabelStudio
from fovea_labelstudio.predictor import Predictor
from fovea_labelstudio.settings import LabelStudioSettings
from fovea_labelstudio.training_run import TrainingPlan, TrainingRuns
from services.gateway.tests.stage import served
from services.medical_seg.models.pranet import PraNetSegmenter

FRAME = Path(__file__).parents[3] / "services/medical_seg/models/frame.jpg"

TOKEN = "0123456789abcdef"

BRUSH = """<View><Image name="img" value="$image"/>
<BrushLabels name="tag" toName="img"><Label value="Polyp"/></BrushLabels></View>"""
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels")


gateway = partial(served, "medical-seg", {"pranet": PraNetSegmenter})


def files_of_label_studio(files: Mapping[str, Any]) -> LabelStudio:
    """A Label Studio that answers with files by path: bytes as they are, all else as JSON."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.headers.get("authorization") != f"Token {TOKEN}":
            return httpx2.Response(401)
        if (found := files.get(request.url.path)) is None:
            return httpx2.Response(404)
        return httpx2.Response(200, content=found if isinstance(found, bytes) else json.dumps(found).encode())

    return LabelStudio("http://studio.test:8080", TOKEN, limit=2**20, transport=httpx2.MockTransport(answer))


@contextlib.contextmanager
def backend(
    url: str, label_studio: LabelStudio, plan: TrainingPlan | None = None, fit_every: int = 0, **settings: Any
) -> Iterator[TestClient]:
    sdk = httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60)
    runs = TrainingRuns(label_studio, plan) if plan else None
    answers = LabelStudioBackend(Predictor(sdk, label_studio, ["pranet-annotated", "pranet"]), runs, fit_every)
    app = build_backend_app(answers, LabelStudioSettings(_env_file=None, **settings))
    with TestClient(app, base_url="http://127.0.0.1:9090") as client:
        try:
            yield client
        finally:
            assert client.portal is not None
            client.portal.call(sdk.aclose)
            client.portal.call(label_studio.close)
