"""A service's HTTP front: middleware, task routes, request parsing, negotiation, errors."""
