"""An example of a plug-in: one model, one method, one route, one command, one page."""
