"""Storage: one interface to the object store that holds what users made, and a lease for its single writers."""

from shared.storage.expiring_objects import ExpiringObjects
from shared.storage.lease import Lease
from shared.storage.object_store import ObjectFacts, ObjectStore, open_object_store

__all__ = ["ExpiringObjects", "Lease", "ObjectFacts", "ObjectStore", "open_object_store"]
