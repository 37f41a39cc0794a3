"""Evaluation of search systems and answers with labels: rankings, significance, corrected scores, nuggets, imports."""
