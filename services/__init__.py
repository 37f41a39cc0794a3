"""The gateway and the six services. No service imports another; what two of them need lives in `shared`."""
