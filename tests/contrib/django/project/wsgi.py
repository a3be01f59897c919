"""The WSGI application of the test site."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from tests.contrib.bed.visits import tell_of_post_process

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.contrib.django.project.settings")
tell_of_post_process()
application = get_wsgi_application()
