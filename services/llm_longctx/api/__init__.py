"""HTTP routes: OpenAI's, documents, sessions, methods. Knows HTTP; `serving` and `state` do the work."""
