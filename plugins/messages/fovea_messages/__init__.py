"""Anthropic's Messages API on the chats of the served language models."""
