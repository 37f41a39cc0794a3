"""Generation for experiments: forced and free decoding, shared prefixes, needle maps."""
