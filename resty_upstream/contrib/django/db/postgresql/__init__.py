"""PostgreSQL by psycopg 3: Django's own engine, with an upstream where it has ``HOST`` and ``PORT``.

::

    DATABASES = {
        "default": {
            "ENGINE": "resty_upstream.contrib.django.db.postgresql",
            "NAME": "shop",
            "USER": "app",
            "OPTIONS": {"upstream": "databases"},  # a name in UPSTREAMS
        }
    }

Each connection goes to a host that works; one that breaks is replaced as Django replaces them, before the next
request or, with ``CONN_HEALTH_CHECKS``, in it. No query is sent twice. ``HOST``, where given, is the one name that
the certificates of all servers have, for ``sslmode=verify-full``.

Where a write meets a standby, the error is raised, and the connection closed: until the request is over, this
thread connects to other hosts (with ``OPTIONS["pool"]``, to whichever the pool has). To never connect to a
standby, add ``"target_session_attrs": "read-write"`` to ``OPTIONS``.
"""
