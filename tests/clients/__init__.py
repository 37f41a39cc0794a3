"""Client libraries that nobody here wrote, against a gateway with a language model and the judge behind it."""
