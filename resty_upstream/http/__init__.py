"""Requests of HTTP with failover: what all transports share, and the transports by client.

A transport is a user's own client on top of an upstream's pools and their health: :mod:`.httpx` is one.
"""
