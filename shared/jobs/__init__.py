"""Jobs: the JobQueue contract, its Redis implementation, large payloads in the object store and the worker loop."""
