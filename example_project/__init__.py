"""A Django project that uses `resty_upstream`, with three back ends to kill."""
