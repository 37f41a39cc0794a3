"""Rehearsal of production traffic: mixed tasks of two tenants over restarts and a killed node, held against SLOs."""
