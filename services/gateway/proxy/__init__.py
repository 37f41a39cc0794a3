"""The reverse proxy: replayable bodies, retry policy, response relay, disconnect guard, HTTP client to the replicas."""
