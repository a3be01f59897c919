"""Which address is which view."""

from __future__ import annotations

from django.urls import path

from . import views

urlpatterns = [
    path("", views.page),
    path("raw", views.raw),
    path("http", views.http),
    path("client", views.client),
    path("async", views.asynchronous),
]
