"""Servables of plans and of scanpaths, which the files in `models` give a card."""
