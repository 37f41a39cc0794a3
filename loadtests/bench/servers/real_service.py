"""One model behind its service, as its own process: `real_service PORT SERVICE MODEL`."""

import sys

import uvicorn

from shared.registry import servables
from shared.serving.build_app import build
from shared.settings import settings

if __name__ == "__main__":
    port, service, model = sys.argv[1:]
    app = build(service, servables={model: servables(service)[model]}, settings=settings())
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
