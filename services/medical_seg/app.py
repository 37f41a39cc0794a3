"""The app of medical-seg: its models behind `POST /v1/segment` and Open Inference v2."""

from shared.serving.build_app import build

app = build("medical-seg")
