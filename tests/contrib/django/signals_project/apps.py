"""The app of the site."""

from __future__ import annotations

from django.apps import AppConfig


class SiteConfig(AppConfig):
    """Connects the receivers, as an app does."""

    name = "tests.contrib.django.signals_project"

    def ready(self) -> None:
        from tests.contrib.django.signals_project import receivers  # noqa: F401 - connects them
