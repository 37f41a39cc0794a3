"""Distances and a local plane in metres, on a sphere of the earth's mean radius: within 0.5 % of the ellipsoid."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RADIUS_M = 6_371_008.8

Degrees = Sequence[tuple[float, float]]


def distances(points: Degrees) -> NDArray[np.float64]:
    """Metres [n − 1] between consecutive points of latitude and longitude, by the haversine formula."""
    if len(points) < 2:
        return np.zeros(0)
    lat, lon = np.radians(np.asarray(points, float)).T
    half = np.sin(np.diff(lat) / 2) ** 2 + np.cos(lat[:-1]) * np.cos(lat[1:]) * np.sin(np.diff(lon) / 2) ** 2
    return np.asarray(2 * RADIUS_M * np.arcsin(np.sqrt(np.clip(half, 0, 1))))


def to_space(points: Degrees) -> NDArray[np.float64]:
    """Metres [n, 3] from the middle of the earth: near points are as far apart as on the ground, wherever they lie."""
    lat, lon = np.radians(np.asarray(points, float)).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1) * RADIUS_M


def to_metres(points: Degrees) -> NDArray[np.float64]:
    """East and north [n, 2] in metres of the first point, on a plane that touches the earth between them."""
    lat, lon = np.radians(np.asarray(points, float)).T
    middle = np.cos((lat.min() + lat.max()) / 2)
    across = (lon - lon[0] + np.pi) % (2 * np.pi) - np.pi
    return np.stack([across * middle, lat - lat[0]], axis=1) * RADIUS_M
