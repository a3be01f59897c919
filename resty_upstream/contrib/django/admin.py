"""The status page as a section of the admin.

It is there without further ado under the default admin site, whichever that is. Another one is told::

    from resty_upstream.contrib.django.admin import UpstreamAdmin
    from resty_upstream.contrib.django.models import Upstream

    my_site.register(Upstream, UpstreamAdmin)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.context_processors import csrf
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext

from resty_upstream.contrib.django.conf import upstreams
from resty_upstream.contrib.django.models import Upstream
from resty_upstream.status import TYPES, Board, Order, Request, Response, Viewer

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Upstream]
    View = Callable[..., HttpResponse]
else:
    _ModelAdmin = admin.ModelAdmin


@admin.register(Upstream)
class UpstreamAdmin(_ModelAdmin):
    """All upstreams of ``UPSTREAMS``, for who has the permission ``view_upstream`` or ``change_upstream``."""

    def get_urls(self) -> list[URLPattern]:
        """The addresses of the page, each behind the admin's own door. There are none to add or delete with."""
        guard = self.admin_site.admin_view
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        page = _without_detour(self.admin_site, guard(self._page))
        return [
            path("", page, name=f"{name}_changelist"),
            *(path(asset, guard(self._page, cacheable=True), {"path": asset}) for asset in TYPES),
            path("logout", guard(self.admin_site.logout)),
            # Where entries of the admin's log lead.
            path(
                "<str:object_id>/change/",
                guard(lambda _request, **_id: HttpResponseRedirect("../../")),
                name=f"{name}_change",
            ),
            path("<path:path>", page),
        ]

    def _page(self, request: HttpRequest, path: str = "") -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied

        def log(order: Order, _viewer: Viewer) -> None:
            self.log_change(request, Upstream(f"{order.upstream}/{order.pool}/{order.host}"), _message(order))

        return _response(Board(upstreams, log).answer(_request(request, path), self._viewer(request)))

    def _viewer(self, request: HttpRequest) -> Viewer:
        header = self.admin_site.site_header or gettext("Django administration")
        return Viewer(
            str(request.user.get_username()),
            may_change=self.has_change_permission(request),
            # Lazy: a token that is made sets a cookie, and only forms need one.
            form_field=("csrfmiddlewaretoken", cast("str", csrf(request)["csrf_token"])),
            may_leave=True,
            home=(str(header), reverse("admin:index", current_app=self.admin_site.name)),
        )


def _without_detour(site: admin.AdminSite, page: View) -> View:
    """Tells the page's script that its user is logged out, which cannot follow to a form."""

    def view(request: HttpRequest, path: str = "") -> HttpResponse:
        if not request.accepts("text/html") and not site.has_permission(request):
            error = "You are logged out. Load the page again to log in."
            return JsonResponse({"status": 403, "error": error}, status=403)
        return page(request, path)

    return view


def _message(order: Order) -> str:
    said = [f"{order.filled(order.verb.done)}."]
    said += [f"Reason: {order.reason}."] if order.reason else []
    said += [f"Until: {order.until}."] if order.until and order.verb.may_end else []
    return " ".join(said)


def _request(request: HttpRequest, path: str) -> Request:
    return Request(
        method=request.method or "",
        mount="",
        path=f"/{path}",
        query=request.META.get("QUERY_STRING", ""),
        headers={name.lower(): value for name, value in request.headers.items()},
        peer="",
        secure=request.is_secure(),
        http_version="",
        # Django has read it, within its bounds, to look for the token.
        body=request.POST.urlencode().encode(),
    )


def _response(answer: Response) -> HttpResponse:
    response = HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))
    # With no-referrer, browsers send forms as of an unknown origin, which Django refuses.
    response.headers["Referrer-Policy"] = "same-origin"
    return response
