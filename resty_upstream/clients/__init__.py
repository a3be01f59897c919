"""Clients other than those of HTTP, each in a module named for it.

Nothing is imported from here: a module imports its client, which may not be installed.
"""
