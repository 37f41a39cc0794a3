"""What is tested across rooms: contracts, deployment, the whole product; and the checks that `make lint` runs."""
