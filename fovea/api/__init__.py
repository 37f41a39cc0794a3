"""Wire types by deed, as pydantic models. Pure data: imports nothing of ours but errors."""
