"""The gateway's gRPC side: server, proxy to replicas, health service, protobuf field reader."""
