"""A service's Open Inference v2 front: REST, gRPC, bodies, metadata, tensors."""
