"""The contenders' servers, each `python -m loadtests.bench.servers.<name> PORT`, all around the same ONNX session."""
