"""Open Inference v2 front of a service: REST, gRPC, bodies, metadata, tensors."""
