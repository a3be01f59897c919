"""The example's WSGI application, after a use of the upstream where the module is imported.

Under ``gunicorn --preload`` that is the master, before it forks.
"""

from __future__ import annotations

import os

from example_project.site.views import ask
from example_project.site.wsgi import application
from resty_upstream.contrib.django import get_upstream

__all__ = ["application"]

answer, _ = get_upstream().connect(ask)
print(f"process {os.getpid()} was told {answer!r} at import", flush=True)
