"""The gateway's gRPC side: server, proxy to replicas, health service, reader of one protobuf field."""
