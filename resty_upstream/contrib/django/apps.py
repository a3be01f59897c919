"""The Django app."""

from django.apps import AppConfig
from django.core.checks import register

from resty_upstream.contrib.django import checks


class UpstreamConfig(AppConfig):
    """Opens nothing and starts nothing: it is also loaded by masters that fork and by every command."""

    name = "resty_upstream.contrib.django"
    label = "resty_upstream"
    verbose_name = "Upstreams"

    def ready(self) -> None:
        register(checks.check_upstreams, checks.TAG)
        register(checks.check_middleware, checks.TAG)
        register(checks.check_deployment, checks.TAG, deploy=True)
