"""RULER-form evaluation: what attention methods cost on 13 tasks at equal bytes, the question unseen or seen.

Tasks, counts, placement and metric are RULER's; prose, words and seeds are not: numbers compare methods here, and never
with published RULER tables.
"""
