"""Text into data: grades out of answers, label files, TREC files."""
