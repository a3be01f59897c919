"""WSGI entry point: `gunicorn example_project.site.wsgi:application`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING
from wsgiref.util import shift_path_info

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from resty_upstream.contrib.django import get_upstream
from resty_upstream.status.wsgi import StatusApp

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.site.settings")

site = get_wsgi_application()
# A site with Django's admin has the page there, and needs none of this.
status = StatusApp({name: get_upstream(name) for name in settings.UPSTREAMS}, token=settings.STATUS_TOKEN)


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The site, and the status page below `/upstreams/`."""
    if environ["PATH_INFO"].startswith("/upstreams/"):
        shift_path_info(environ)
        return status(environ, start_response)
    return site(environ, start_response)
