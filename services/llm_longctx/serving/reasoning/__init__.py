"""Forms of thinking before an answer, one file each; the package is scanned, so that a new form is a new file."""
