"""Active checks: how a host is checked, and the one process of all that does it."""
