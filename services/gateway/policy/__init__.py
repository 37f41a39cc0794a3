"""Access control: API keys, rate limits, and the rule that keeps a gateway without keys local."""
