"""The gateway's HTTP front: middleware, request context, error responses, the OpenAPI document and its page."""
