"""Jobs of a service: run on the host of a replica, or sent to the replicas by workers of their own."""
