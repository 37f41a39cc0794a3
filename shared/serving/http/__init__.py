"""HTTP front of a service: middleware, task routes, request parsing, negotiation, errors."""
