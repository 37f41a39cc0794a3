"""Tests across packages: contracts, deployment, the whole product; and the checks that `make lint` runs."""
