"""Language models of llm-longctx, steered and looked into: vectors, captures, patches, sweeps, compared methods."""
