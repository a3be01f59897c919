"""Each view at the address of its name."""

from __future__ import annotations

from django.urls import path

from tests.contrib.django.project import views

urlpatterns = [path(view.__name__, view) for view in views.VIEWS]
