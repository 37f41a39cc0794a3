"""Files and batches in OpenAI's form: uploaded lists of requests, run as jobs, and their answers as files."""
