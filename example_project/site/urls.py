"""Which address is which view."""

from __future__ import annotations

from django.conf import settings
from django.urls import path

from . import views

urlpatterns = [
    path("", views.page),
    path("raw", views.raw),
    path("http", views.http),
    path("client", views.client),
    path("async", views.asynchronous),
]

if settings.REDIS_PORTS:
    from . import redis_views

    urlpatterns += [
        path("cache", redis_views.page, name="cache"),
        path("count", redis_views.count),
    ]
