"""llm-longctx: language models behind OpenAI's protocol, and the engine that runs them."""
