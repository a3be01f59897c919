"""A Django site whose tasks, in Celery, use its upstreams."""
