"""The pictures of the README, taken of what really happens."""
