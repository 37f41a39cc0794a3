"""Storage: versioned documents, and the mini-collection that ships with the service."""
