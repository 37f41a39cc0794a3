"""Jobs: the queue in Redis, large payloads in the object store and the worker loop."""
