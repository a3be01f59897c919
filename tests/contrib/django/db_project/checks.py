"""What ``manage.py test`` runs."""

from __future__ import annotations

from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import TestCase


class InTestDatabase(TestCase):
    """Of a database that was made through the upstream."""

    def test_models_are_there(self) -> None:
        ContentType.objects.create(app_label="shop", model="order")
        assert ContentType.objects.filter(app_label="shop").exists()
        assert str(connection.settings_dict["NAME"]).startswith("test_")
        assert connection.connection.upstream_info.host.id == "b"
