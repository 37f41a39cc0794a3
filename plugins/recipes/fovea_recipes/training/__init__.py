"""How weights come to be: the Recipe contract, one fit loop, manifests, and the export to ONNX with stated parity."""
