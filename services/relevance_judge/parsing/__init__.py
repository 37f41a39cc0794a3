"""Parsers: grades out of answers, label files, TREC files."""

from services.relevance_judge.parsing.grades import ParsedGrade, parse

__all__ = ["ParsedGrade", "parse"]
