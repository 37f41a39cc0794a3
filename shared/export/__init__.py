"""torch → ONNX with measured parity, and the artifacts that engines open. No training code."""
