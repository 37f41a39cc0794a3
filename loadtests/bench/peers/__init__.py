"""Peers that need an environment of their own: each a script without imports of ours, and what it installs."""
