"""Engines run arrays → arrays: torch, ONNX Runtime, TensorRT (through it), and any Open Inference v2 server."""
