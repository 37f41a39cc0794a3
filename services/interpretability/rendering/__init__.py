"""Reports as pictures and pages: SVG and PNG drawings, plots, the HTML page."""
