"""Our gateway as its own process, in front of the service that `FOVEA_STATIC_UPSTREAMS` names."""

import os
import runpy
import sys

if __name__ == "__main__":
    os.environ["FOVEA_HTTP_PORT"] = sys.argv[1]
    os.environ["FOVEA_GRPC_PORT"] = "0"
    sys.argv = ["services.gateway"]
    runpy.run_module("services.gateway", run_name="__main__")
