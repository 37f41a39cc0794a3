"""The detection service with YOLO9tr alone, as its own process: what stands behind the gateway in a bench."""

import sys

import uvicorn

from services.detection.models.yolo9tr import Yolo9trBoxDetector
from shared.serving.build_app import build
from shared.settings import settings

if __name__ == "__main__":
    app = build("detection", servables={"yolo9tr": Yolo9trBoxDetector}, settings=settings())
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
