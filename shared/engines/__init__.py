"""Inference engines, arrays in and out: torch, ONNX Runtime, TensorRT (through it), and any Open Inference v2 server.

Each engine's file imports its own library; importing this package needs none of them.
"""

from shared.engines.factory import ModelArtifacts, missing_parts, open_engine

__all__ = ["ModelArtifacts", "missing_parts", "open_engine"]
