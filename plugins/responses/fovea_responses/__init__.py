"""OpenAI's Responses API on the chats of the served language models."""
