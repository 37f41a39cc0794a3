"""One plug-in of each kind, as somebody writes it: one file that goes into one room, and no edited file."""
