"""Plugins for frameworks, each over the public API alone."""
