"""The gateway: authentication, rate limits, routing, retries, jobs, one OpenAPI document. Imports no tensor library."""
