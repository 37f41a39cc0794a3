"""Surveys of roads: photographs and films with their places in, damage on a map, per kilometre and as a route, out."""
