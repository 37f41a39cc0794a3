"""State of callers between requests: sessions and documents, encrypted per tenant."""
