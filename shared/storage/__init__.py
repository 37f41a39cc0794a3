"""Storage: one interface to the object store that holds what users made, and a lock for its single writers."""

from shared.storage.expiring_objects import ExpiringObjects
from shared.storage.object_lock import ObjectLock
from shared.storage.object_store import ObjectFacts, ObjectStore, open_object_store

__all__ = ["ExpiringObjects", "ObjectFacts", "ObjectLock", "ObjectStore", "open_object_store"]
