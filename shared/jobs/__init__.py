"""Jobs: the JobQueue contract, its Redis implementation, the blob store for large payloads and the worker loop."""
