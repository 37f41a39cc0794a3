"""Turns Servables into a service: host, batching, HTTP and gRPC fronts, replicas, and the supervisor of `fovea up`."""
