"""The ASGI application of the test site."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

from tests.contrib.bed.visits import tell_of_post_process

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.contrib.django.project.settings")
tell_of_post_process()
application = get_asgi_application()
