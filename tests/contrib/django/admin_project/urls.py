"""The views of the test site, with two admins beside them: the default one, in several languages, and another."""

from __future__ import annotations

from django.conf.urls.i18n import i18n_patterns
from django.contrib import admin
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest
from django.urls import path

from resty_upstream.contrib.django.admin import UpstreamAdmin
from resty_upstream.contrib.django.models import Upstream
from tests.contrib.django.project.urls import urlpatterns as views


class OpenSite(admin.AdminSite):
    """Lets in who is active, also those who are no staff."""

    site_header = "Operations"

    def has_permission(self, request: HttpRequest) -> bool:
        user: User | AnonymousUser = request.user
        return user.is_active


operations = OpenSite("operations")
operations.register(Upstream, UpstreamAdmin)

urlpatterns = [
    *views,
    path("operations/", operations.urls),
    *i18n_patterns(path("admin/", admin.site.urls), prefix_default_language=False),
]
