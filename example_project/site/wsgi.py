"""WSGI entry point: `gunicorn example_project.site.wsgi:application`."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.site.settings")

application = get_wsgi_application()
