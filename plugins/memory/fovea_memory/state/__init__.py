"""What is kept for callers between requests: sessions and documents, encrypted per tenant."""
