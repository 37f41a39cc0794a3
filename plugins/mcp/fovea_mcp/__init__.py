"""Model Context Protocol: the platform's tasks as tools of an assistant."""
