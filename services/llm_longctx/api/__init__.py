"""HTTP routes: OpenAI's, documents, sessions, methods, evaluations. Knows HTTP; `serving` and `state` do the work."""
