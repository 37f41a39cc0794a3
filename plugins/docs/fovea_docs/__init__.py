"""The documentation as a site: pages of the repository, staged, checked and built by Zensical."""
