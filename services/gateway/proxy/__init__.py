"""The reverse proxy: replayable bodies, retries, response relay, disconnects, the HTTP client to replicas."""
