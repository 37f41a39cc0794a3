"""Routes of `/v1/judge/…` about systems, collections and answers, one subject a file."""
