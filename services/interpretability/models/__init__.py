"""Networks of this service: the tiny decoder of the examples."""
