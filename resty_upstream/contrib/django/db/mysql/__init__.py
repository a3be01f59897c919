"""MySQL and MariaDB: Django's own engine, with an upstream where it has ``HOST`` and ``PORT``.

::

    DATABASES = {
        "default": {
            "ENGINE": "resty_upstream.contrib.django.db.mysql",
            "NAME": "shop",
            "USER": "app",
            "OPTIONS": {"upstream": "databases"},  # a name in UPSTREAMS
        }
    }

For mysqlclient, which waits whole seconds, and for PyMySQL (``pymysql.install_as_MySQLdb()``). Each connection
goes to a host that works; one that breaks is replaced as Django replaces them, before the next request or, with
``CONN_HEALTH_CHECKS``, in it. No query is sent twice. Certificates are checked for each host's own name.

Where a write meets a server that is read-only, the error is raised, and the connection closed: until the request
is over, this thread connects to other hosts.
"""
