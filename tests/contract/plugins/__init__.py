"""Plug-ins as somebody writes them: one file that goes into one room, and no edited file."""
