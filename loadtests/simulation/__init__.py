"""Simulation of scale: the gateway's own policies on a simulated clock, with times that were measured."""
