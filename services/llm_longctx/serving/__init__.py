"""Between the protocol and the engine: text models, chat and completions, generation, method selection."""
