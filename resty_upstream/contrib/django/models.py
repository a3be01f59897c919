"""What permissions, log entries and the index of the admin hang on. There is no table, and nothing to migrate.

Without the admin there is no model either: a project would be given permissions that nobody asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.apps import apps

if apps.is_installed("django.contrib.admin"):
    from django.db import models

    if TYPE_CHECKING:
        _Manager = models.Manager["Upstream"]
    else:
        _Manager = models.Manager

    class _NoRows(_Manager):
        """Answers without a query: ``dumpdata``, for one, asks every model for its rows."""

        def get_queryset(self) -> models.QuerySet[Upstream]:
            return super().get_queryset().none()

    class Upstream(models.Model):
        """What was changed, in the admin's log: a host of an upstream."""

        path = models.CharField(max_length=200, primary_key=True)

        objects = _NoRows()

        class Meta:
            managed = False
            default_permissions = ("view", "change")
            base_manager_name = "objects"

        def __str__(self) -> str:
            return self.path
