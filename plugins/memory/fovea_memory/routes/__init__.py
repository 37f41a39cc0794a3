"""Routes of sessions and documents, and how a request continues one. Knows HTTP; `state` does the work."""
