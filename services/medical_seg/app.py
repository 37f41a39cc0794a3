"""The app of medical-seg: its models behind `POST /v1/segment` and Open Inference v2, and studies of DICOM."""

from services.medical_seg.dicom.routes import router
from shared.serving.build_app import build

app = build("medical-seg", routers=[router])
