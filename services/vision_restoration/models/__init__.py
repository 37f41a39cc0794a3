"""Networks of the service and the Servable around them; scanned by `shared.registry`."""
