"""relevance-judge: graded relevance labels with their evidence."""
