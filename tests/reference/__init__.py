"""Examples of the API reference, recorded from a running platform."""
