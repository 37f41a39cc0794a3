"""Rendering of reports: SVG and PNG drawings, plots, the HTML page, arrays."""
