"""Networks of the service and what is served of them, one file per system."""
