"""A Django site that tells a journal of the signals that it receives."""
