"""Models of this plug-in: every `Servable` in this package is found."""
