"""Storage: versioned documents on disk, and the mini-collection that ships with the service."""
