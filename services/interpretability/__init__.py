"""interpretability: experiments on the attention heads of language models."""
