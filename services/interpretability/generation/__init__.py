"""Generation for experiments: forced and free decoding, shared prefixes, needle maps, the llm-longctx client."""
