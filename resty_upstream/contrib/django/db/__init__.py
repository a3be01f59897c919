"""Database engines whose connections go to the hosts of an upstream."""
