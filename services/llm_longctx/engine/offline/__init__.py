"""The engine without a service: requests of scripts and tests, and sequences driven by hand."""
