"""Models with a memory for llm-longctx: Landmark, Titans, Routing and hybrids, with their sessions and documents."""
