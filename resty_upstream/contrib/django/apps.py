"""The Django app."""

from django.apps import AppConfig


class UpstreamConfig(AppConfig):
    """Opens nothing and starts nothing: it is also loaded by masters that fork and by every command."""

    name = "resty_upstream.contrib.django"
    label = "resty_upstream"
    verbose_name = "Upstreams"
