"""Clients of other libraries over an upstream, for the plugins that need the same ones."""
