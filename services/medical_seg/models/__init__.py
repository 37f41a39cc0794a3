"""Networks of the service and the Servables around them; scanned by `shared.registry`."""
