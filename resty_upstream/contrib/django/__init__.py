"""Django: ``request.upstream`` and ``request.upstreams``, configured by the ``UPSTREAMS`` setting.

::

    INSTALLED_APPS = [..., "resty_upstream.contrib.django"]
    MIDDLEWARE = [..., "resty_upstream.contrib.django.UpstreamMiddleware"]
    UPSTREAMS = {
        "default": {
            "STORE": "sqlite:///run/myapp/upstreams.db",
            "POOLS": {"primary": {"hosts": {"a": {"host": "127.0.0.1", "port": 8001}}}},
        }
    }
"""

from resty_upstream.contrib.django.conf import get_upstream
from resty_upstream.contrib.django.middleware import UpstreamHttpRequest, UpstreamMiddleware

__all__ = ["UpstreamHttpRequest", "UpstreamMiddleware", "get_upstream"]
