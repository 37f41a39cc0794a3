"""Networks and what is served of them."""
