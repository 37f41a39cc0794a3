"""A plug-in as somebody writes it: one file that goes into one room, and no edited file."""
