"""Rollouts: canaries that answer a share of the requests, and shadows whose answers are compared."""
