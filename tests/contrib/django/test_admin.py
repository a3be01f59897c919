"""The upstreams in the admin: who sees and who changes them, and what is left of it in the log."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import django
import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test import AsyncClient, Client, override_settings
from django.test.utils import override_script_prefix

from resty_upstream import Upstream
from resty_upstream.contrib.django import get_upstream
from resty_upstream.contrib.django.models import Upstream as Entry
from tests.e2e.processes import ROOT, python
from tests.helpers import hosts

pytestmark = pytest.mark.django_db

PAGE = "/admin/resty_upstream/upstream/"
HOSTILE = "<img src=x onerror=alert(1)>"
POOLS = {"p": {"hosts": {**hosts("a", "b", weight=10), HOSTILE: {"host": "c.test", "weight": 10}}}}
DOWN = {"do": "down", "upstream": "default", "pool": "p", "host": "a", "reason": "new kernel", "until": "2h"}
JSON = {"accept": "application/json"}

ADDRESSES = [
    "",
    "status.json",
    "schema.json",
    "status.css",
    "status.js",
    "theme.js",
    "icon.svg",
    "change?do=down&upstream=default&pool=p&host=a",
]
ASK = ADDRESSES[-1]

Login = Callable[..., Client]


@pytest.fixture(autouse=True)
def upstream() -> Iterator[Upstream]:
    """The default upstream of the site, which has another one, too."""
    others = {"STORE": "memory://", "POOLS": {"mails": {"hosts": hosts("m")}}}
    with override_settings(UPSTREAMS={"default": {"STORE": "memory://", "POOLS": POOLS}, "mail": others}):
        yield get_upstream()


@pytest.fixture
def login() -> Login:
    """Logs in a user of the staff who has these permissions."""

    def login(*permissions: str, name: str = "alice", client: Client | None = None, **options: Any) -> Client:
        user = User.objects.create_user(name, password="secret", **{"is_staff": True, **options})
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = client or Client()
        client.force_login(user)
        return client

    return login


def text_of(response: Any) -> str:
    return str(response.content.decode())


def is_up(upstream: Upstream, host: str = "a") -> bool:
    return bool(upstream.get_pools()["p"]["hosts"][host]["up"])


def token_of(page: str) -> str:
    """What a form of the page sends to show that it is one."""
    found = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert found
    return found[1]


# ── who may do what ───────────────────────────────────────────────────────────────────────────


def test_the_index_leads_to_the_page_and_the_page_back(login: Login) -> None:
    """It shows all upstreams by name, and the way out."""
    client = login("change_upstream")
    assert f'href="{PAGE}"' in text_of(client.get("/admin/"))
    page = text_of(client.get(PAGE))
    assert 'href="/admin/"' in page
    assert "Django administration" in page
    assert re.findall(r"<h2[^>]*>(?:<bdi>)?(\w+)", page) == ["default", "mail"]
    assert [each["name"] for each in client.get(f"{PAGE}status.json").json()["upstreams"]] == ["default", "mail"]


def test_who_may_change_has_the_switches_and_they_work(login: Login, upstream: Upstream) -> None:
    client = login("change_upstream")
    assert "do=down" in text_of(client.get(PAGE))
    response = client.post(f"{PAGE}change", DOWN)
    assert (response.status_code, response.headers["location"]) == (303, "./")
    host = upstream.get_pools()["p"]["hosts"]["a"]
    assert (host["up"], host["reason"], host["by"]) == (False, "new kernel", "alice")
    assert host["until"] > 0
    assert upstream.history()[-1].by == "alice"


def test_who_may_view_has_no_switches_and_is_refused(login: Login, upstream: Upstream) -> None:
    client = login("view_upstream")
    assert f'href="{PAGE}"' in text_of(client.get("/admin/"))
    page = text_of(client.get(PAGE))
    assert "alice" in page
    assert "do=down" not in page
    assert client.get(f"{PAGE}{ASK}").status_code == 403
    assert client.post(f"{PAGE}change", DOWN).status_code == 403
    assert client.post(f"{PAGE}change", DOWN, headers=JSON).json()["status"] == 403
    assert is_up(upstream)
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("address", ADDRESSES)
def test_who_has_neither_permission_sees_nothing(login: Login, upstream: Upstream, address: str) -> None:
    client = login()
    assert "upstream" not in text_of(client.get("/admin/")).lower()
    assert client.get(PAGE + address).status_code == 403
    assert client.post(f"{PAGE}change", DOWN).status_code == 403
    assert is_up(upstream)


@pytest.mark.parametrize("address", [*ADDRESSES, "nowhere", "logout", "default_2Fp_2Fa/change/"])
@pytest.mark.parametrize("is_staff", [True, False])
def test_who_is_not_of_the_staff_is_asked_to_log_in(
    login: Login, upstream: Upstream, address: str, is_staff: bool
) -> None:
    client = Client() if is_staff else login("change_upstream", is_staff=False)
    response = client.get(PAGE + address)
    assert response.status_code == 302
    assert response.headers["location"].startswith("/admin/login/?next=")
    assert client.post(f"{PAGE}change", DOWN).status_code == 302
    assert is_up(upstream)


def test_nobody_adds_or_deletes_upstreams(admin_client: Client) -> None:
    """Not even a superuser: they are settings."""
    assert admin_client.get(f"{PAGE}add/").status_code == 404
    assert admin_client.get(f"{PAGE}default/delete/").status_code == 404
    assert f"{PAGE}add/" not in text_of(admin_client.get("/admin/"))


def test_the_script_is_told_that_its_user_is_logged_out() -> None:
    """It could not follow to the form, and would say that the server does not answer."""
    response = Client().get(f"{PAGE}status.json?for=page", headers=JSON)
    assert (response.status_code, response.json()["error"]) == (
        403,
        "You are logged out. Load the page again to log in.",
    )


def test_one_logs_out_from_the_page(login: Login) -> None:
    client = login("view_upstream", client=Client(enforce_csrf_checks=True))
    token = token_of(text_of(client.get(PAGE)))
    assert client.post(f"{PAGE}logout").status_code == 403
    assert client.get(PAGE).status_code == 200
    assert client.post(f"{PAGE}logout", {"csrfmiddlewaretoken": token}).status_code == 200
    assert client.get(PAGE).status_code == 302


# ── forms ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("headers", [{}, JSON])
def test_a_form_of_another_site_is_refused(login: Login, upstream: Upstream, headers: dict[str, str]) -> None:
    client = login("change_upstream", client=Client(enforce_csrf_checks=True))
    token = token_of(text_of(client.get(f"{PAGE}{ASK}")))
    for given in ({}, {"csrfmiddlewaretoken": "x" * 64}):
        assert client.post(f"{PAGE}change", {**DOWN, **given}, headers=headers).status_code == 403
    elsewhere = {**headers, "origin": "https://elsewhere.test"}
    good = {**DOWN, "csrfmiddlewaretoken": token}
    assert client.post(f"{PAGE}change", good, headers=elsewhere).status_code == 403
    assert is_up(upstream)
    assert client.post(f"{PAGE}change", good, headers=headers).status_code in (200, 303)
    assert not is_up(upstream)


@override_settings(MIDDLEWARE=[each for each in django.conf.settings.MIDDLEWARE if "csrf" not in each])
def test_forms_are_protected_without_the_middleware_for_it(login: Login, upstream: Upstream) -> None:
    client = login("change_upstream", client=Client(enforce_csrf_checks=True))
    assert client.post(f"{PAGE}change", DOWN).status_code == 403
    assert is_up(upstream)


def test_a_wrong_value_is_asked_again_and_leaves_no_entry(login: Login, upstream: Upstream) -> None:
    client = login("change_upstream")
    response = client.post(f"{PAGE}change", {**DOWN, "until": "soon"})
    assert response.status_code == 400
    assert "until must be" in text_of(response)
    assert token_of(text_of(response))
    assert client.post(f"{PAGE}change", {**DOWN, "host": "none"}).status_code == 404
    assert client.post(f"{PAGE}change", {str(number): "x" for number in range(30)}).status_code == 400
    assert is_up(upstream)
    assert not LogEntry.objects.exists()


def test_an_urlencoded_form_and_json_in_return(login: Login, upstream: Upstream) -> None:
    """As the script of the page does it."""
    kind = "application/x-www-form-urlencoded"
    order = "do=drain&upstream=default&pool=p&host=b&reason=%C3%A4"
    response = login("change_upstream").post(f"{PAGE}change", order, content_type=kind, headers=JSON)
    assert response.json() == {"done": "b in p is drained."}
    assert upstream.get_pools()["p"]["hosts"]["b"]["weight"] == 0
    assert "Reason: ä." in LogEntry.objects.get().change_message


# ── the log ───────────────────────────────────────────────────────────────────────────────────


def test_each_change_is_in_the_log_with_what_and_why(login: Login) -> None:
    client = login("change_upstream")
    for order in (DOWN, {**DOWN, "do": "up", "reason": ""}, {**DOWN, "do": "weight", "weight": "7", "until": ""}):
        assert client.post(f"{PAGE}change", order).status_code == 303
    entries = list(LogEntry.objects.order_by("pk"))
    assert [entry.change_message for entry in entries] == [
        "a in p is down. Reason: new kernel. Until: 2h.",
        "a in p is up.",
        "The weight of a in p is 7. Reason: new kernel.",
    ]
    for entry in entries:
        assert (entry.action_flag, entry.object_repr, entry.user.get_username()) == (
            CHANGE,
            "default/p/a",
            "alice",
        )
        assert entry.content_type is not None
        assert entry.content_type.model_class() is Entry


def test_entries_lead_to_the_page(login: Login) -> None:
    client = login("change_upstream")
    client.post(f"{PAGE}change", DOWN)
    index = text_of(client.get("/admin/"))
    (address,) = re.findall(r'<a href="([^"]*default[^"]*)">default/p/a</a>', index)
    assert client.get(address, follow=True).redirect_chain == [("../../", 302)]


class Tags(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        self.names.add(tag)


def test_hostile_ids_are_text_on_the_page_and_in_the_log(login: Login) -> None:
    client = login("change_upstream", name="eve")
    assert client.post(f"{PAGE}change", {**DOWN, "host": HOSTILE, "reason": HOSTILE}).status_code == 303
    for address in (PAGE, "/admin/"):
        page = text_of(client.get(address))
        assert html.escape(HOSTILE) in page
        assert "img" not in Tags(page).names
    assert HOSTILE in LogEntry.objects.get().change_message


# ── other sites ───────────────────────────────────────────────────────────────────────────────


def test_another_admin_site_decides_whom_it_lets_in(login: Login, upstream: Upstream) -> None:
    client = login("change_upstream", is_staff=False)
    page = "/operations/resty_upstream/upstream/"
    shown = text_of(client.get(page))
    assert "Operations" in shown
    assert 'href="/operations/"' in shown
    assert client.post(f"{page}change", DOWN).status_code == 303
    assert not is_up(upstream)
    anonymous = Client().get(page)
    assert anonymous.headers["location"].startswith("/operations/login/")


@pytest.mark.parametrize(("prefix", "start"), [("", "/de"), ("/app", ""), ("/app", "/de")])
def test_it_works_below_a_language_and_below_a_prefix(
    login: Login, upstream: Upstream, prefix: str, start: str
) -> None:
    """All addresses of the page are relative; the way back is not."""
    client = login("change_upstream")
    with override_settings(FORCE_SCRIPT_NAME=prefix or None), override_script_prefix(f"{prefix}/"):
        page = text_of(client.get(start + PAGE))
        response = client.post(f"{start}{PAGE}change", DOWN)
    assert f'href="{prefix}{start}/admin/"' in page
    assert 'src="status.js?' in page
    assert (response.status_code, response.headers["location"]) == (303, "./")
    assert not is_up(upstream)


async def ask_async(client: AsyncClient) -> tuple[str, int]:
    page = await client.get(PAGE)
    answer = await client.post(f"{PAGE}change", DOWN)
    return text_of(page), answer.status_code


@pytest.mark.django_db(transaction=True)
def test_it_works_over_asgi(login: Login, upstream: Upstream) -> None:
    import asyncio

    client = AsyncClient()
    client.cookies = login("change_upstream").cookies
    page, status = asyncio.run(ask_async(client))
    assert "do=down" in page
    assert status == 303
    assert not is_up(upstream)
    assert LogEntry.objects.count() == 1


# ── what else a site does to its answers ──────────────────────────────────────────────────────


def test_its_own_policy_is_strict_and_forms_keep_their_origin(login: Login) -> None:
    headers = login("view_upstream").get(PAGE).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"


SITES_POLICY = (
    "django.middleware.csp.ContentSecurityPolicyMiddleware"
    if django.VERSION >= (6,)
    else "tests.contrib.django.admin_project.middleware.content_security_policy"
)


@override_settings(
    MIDDLEWARE=[SITES_POLICY, *django.conf.settings.MIDDLEWARE],
    SECURE_CSP={"default-src": ["https://site.test"]},
)
def test_the_policy_of_the_site_leaves_that_of_the_page_alone(login: Login) -> None:
    client = login("view_upstream")
    assert client.get("/admin/").headers["content-security-policy"] == "default-src https://site.test"
    assert client.get(PAGE).headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")


@override_settings(
    MIDDLEWARE=[
        "django.middleware.cache.UpdateCacheMiddleware",
        *django.conf.settings.MIDDLEWARE,
        "django.middleware.cache.FetchFromCacheMiddleware",
    ]
)
def test_what_is_live_is_not_cached_and_what_does_not_change_is(login: Login) -> None:
    """Not by the site either, with all its pages in a cache."""
    client = login("view_upstream")
    first, second = (client.get(f"{PAGE}status.json").json()["at"] for _ in range(2))
    assert first < second
    assert {"no-store", "private"} <= set(client.get(PAGE).headers["cache-control"].split(", "))
    assert not client.get(f"{PAGE}status.json").cookies
    assert client.get(f"{PAGE}status.js").headers["cache-control"] == "max-age=31536000"


@override_settings(UPSTREAMS=["default"])
def test_a_wrong_setting_is_said_on_the_page(login: Login) -> None:
    response = login("view_upstream").get(PAGE)
    assert response.status_code == 400
    assert "UPSTREAMS must be a dict by name, not list" in text_of(response)


# ── no table ──────────────────────────────────────────────────────────────────────────────────


def test_there_is_no_table_and_nobody_asks_for_it(
    django_assert_num_queries: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Entry._meta.db_table not in connection.introspection.table_names()
    with django_assert_num_queries(0):
        for manager in (Entry.objects, Entry._default_manager, Entry._base_manager):
            assert not list(manager.all())
            assert manager.count() == 0
    call_command("dumpdata")
    call_command("dumpdata", "resty_upstream", use_base_manager=True)
    assert '"resty_upstream.upstream"' not in capsys.readouterr().out


def test_a_request_that_does_not_touch_the_admin_asks_no_database(
    client: Client, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(0):
        assert client.get("/unused").content == b"unused"


COUNT = """
import json, sys
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test import Client
assert Client().get("/unused").content == b"unused"
print(json.dumps({
    "tables": [name for name in connection.introspection.table_names() if "upstream" in name],
    "permissions": sorted(Permission.objects.filter(content_type__app_label="resty_upstream").values_list(
        "codename", flat=True)),
    "loaded": [name for name in sys.modules
        if name.startswith(("resty_upstream.status", "resty_upstream.contrib.django.admin"))],
}))
"""


class Project:
    """A site with a database of its own, from the command line."""

    def __init__(self, directory: Path, **env: str) -> None:
        settings = {"DJANGO_SETTINGS_MODULE": "tests.contrib.django.admin_project.settings"}
        self._env = {**os.environ, **settings, "SITE_DB": str(directory / "db.sqlite3"), **env}

    def manage(self, *arguments: str) -> str:
        """What a command prints; it succeeds, and says nothing of trouble."""
        command = python("-m", "django", *arguments)
        done = subprocess.run(command, env=self._env, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done
        assert done.stderr == ""
        return done.stdout


def test_nothing_is_to_be_migrated_with_an_admin(tmp_path: Path) -> None:
    """It makes the permissions, and no table; nor is a migration wanted."""
    project = Project(tmp_path)
    for _ in range(2):
        assert "resty_upstream" not in project.manage("migrate")
    assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run")
    seen = json.loads(project.manage("shell", "--command", COUNT).splitlines()[-1])
    assert seen["tables"] == []
    assert seen["permissions"] == ["change_upstream", "view_upstream"]
    assert seen["loaded"]


def test_nothing_is_made_or_loaded_without_an_admin(tmp_path: Path) -> None:
    project = Project(tmp_path, SITE_WITHOUT_ADMIN="1")
    project.manage("migrate", "--run-syncdb")
    assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run")
    seen = json.loads(project.manage("shell", "--command", COUNT).splitlines()[-1])
    assert seen == {"tables": [], "permissions": [], "loaded": []}


def test_nothing_is_left_to_be_done_when_the_admin_comes_or_goes(tmp_path: Path) -> None:
    Project(tmp_path, SITE_WITHOUT_ADMIN="1").manage("migrate")
    with_admin, without = Project(tmp_path), Project(tmp_path, SITE_WITHOUT_ADMIN="1")
    with_admin.manage("migrate")
    for project in (with_admin, without):
        assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run")
        project.manage("migrate", "--check")
