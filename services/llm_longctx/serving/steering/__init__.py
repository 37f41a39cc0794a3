"""Steering of served requests: interventions and captures, stored steering vectors, and captures that are files."""
