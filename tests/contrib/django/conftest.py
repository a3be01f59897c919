"""Django in this process."""

from __future__ import annotations

import django
import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("DJANGO_SETTINGS_MODULE", "tests.contrib.django.admin_project.settings")
    django.setup()
