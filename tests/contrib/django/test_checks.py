"""The system checks: what each of them finds and says, and what they leave alone."""

from __future__ import annotations

import ast
import asyncio
import io
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.checks import ERROR, WARNING, CheckMessage, run_checks
from django.core.management import call_command
from django.http import HttpRequest
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.utils.decorators import sync_and_async_middleware
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import InvalidConfig, UpstreamAPI, lint
from resty_upstream.contrib.django import UpstreamMiddleware, checks, get_upstream
from resty_upstream.stores import open_store
from tests.e2e.processes import ROOT, python

OURS = "resty_upstream.contrib.django.UpstreamMiddleware"
STORE = '"STORE": "sqlite:///run/myapp/upstreams.db"'
TWO: dict[str, Any] = {"a": {"host": "192.0.2.1"}, "b": {"host": "192.0.2.2"}}


def upstream(**options: Any) -> dict[str, Any]:
    """One upstream of the setting, in which nothing is wrong but what the options say."""
    return {"STORE": "memory://", "POOLS": {"p": {"hosts": TWO}}, **options}


def default(**options: Any) -> dict[str, Any]:
    """The setting with one upstream."""
    return {"default": upstream(**options)}


def pool(**options: Any) -> dict[str, Any]:
    """The setting with one upstream of one pool."""
    return default(POOLS={"p": {"hosts": TWO, **options}})


def host(**options: Any) -> dict[str, Any]:
    """The setting with two hosts, of which the first has these options."""
    return pool(hosts={**TWO, "a": {"host": "192.0.2.1", **options}})


def found(setting: object, *, deploy: bool = False, **settings: Any) -> list[CheckMessage]:
    """What our checks say of a site with this ``UPSTREAMS``."""
    with override_settings(**{"MIDDLEWARE": [OURS], "UPSTREAMS": setting, **settings}):
        return run_checks(tags=["upstream"], include_deployment_checks=deploy)


def numbers(messages: list[CheckMessage]) -> list[str]:
    """Their ids, without the name of the app."""
    return [str(message.id).removeprefix("resty_upstream.") for message in messages]


def assert_says(messages: list[CheckMessage], number: str, message: str, hint: str) -> None:
    """There is one message: this one, of the level that its id says."""
    (only,) = messages
    assert only.id == f"resty_upstream.{number}"
    assert only.level == (ERROR if number.startswith("E") else WARNING)
    assert only.msg.startswith(message)
    assert hint in str(only.hint)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)


# ── each finding ──────────────────────────────────────────────────────────────────────────────

ERRORS: list[tuple[str, object, str, str]] = [
    ("E001", [], "UPSTREAMS must be a dict by name, not list", f'UPSTREAMS = {{"default": {{{STORE}, "POOLS": {{'),
    ("E002", default(STOER=1), "UPSTREAMS['default']['STOER'] is not an option: did you mean STORE?", "capitals"),
    ("E003", host(port=99_999), "UPSTREAMS['default']: pools.p.hosts.a.port must be a number from 1", "'250ms'"),
    (
        "E004",
        pool(hosts={"a": {}}),
        "UPSTREAMS['default']: pools.p.hosts.a.host must be given",
        '"host": "10.0.0.1"',
    ),
    ("E005", default(POOLS={"": {}}), "UPSTREAMS['default']: an id in pools must be", '"primary" or "a"'),
    ("E006", pool(method="fastest"), "UPSTREAMS['default']: pools.p.method must be", "register_method"),
    ("E007", default(STORE="upstreams.db"), "UPSTREAMS['default']['STORE'] must be", STORE),
]


@pytest.mark.parametrize(("number", "setting", "message", "hint"), ERRORS, ids=[row[0] for row in ERRORS])
def test_what_is_refused_is_an_error(number: str, setting: object, message: str, hint: str) -> None:
    """With its path, a stable id for its kind, and what to write instead."""
    messages = found(setting)
    assert_says(messages, number, message, hint)
    with override_settings(UPSTREAMS=setting), pytest.raises(InvalidConfig) as caught:
        get_upstream()
    assert caught.value.problems == (messages[0].msg,)


def test_each_id_has_its_test() -> None:
    """A guard: a new kind of finding needs a row here, or a test below."""
    sources = [Path(module.__file__).read_text() for module in (lint, checks) if module.__file__]
    ids = set(re.findall(r'"([EW]0\d\d)"', "".join(sources)))
    assert {"E001", "W001", "W026"} <= ids
    assert ids <= set(re.findall(r"[EW]0\d\d", Path(__file__).read_text()))


WARNINGS: list[tuple[str, object, str, str]] = [
    (
        "W014",
        pool(healthcheck={"status_codes": []}),
        "UPSTREAMS['default']: pools.p.healthcheck.status_codes is empty",
        "outside 200 to 399",
    ),
    (
        "W015",
        pool(healthcheck={"interval": 1}),
        "UPSTREAMS['default']: pools.p.healthcheck.interval is 1 s",
        "raise the interval",
    ),
    (
        "W016",
        pool(healthcheck={"type": "os.no_such_thing"}),
        "UPSTREAMS['default']: the check os.no_such_thing cannot be imported",
        "package.module.function",
    ),
    (
        "W017",
        pool(ssl=True, ssl_verify=False),
        "UPSTREAMS['default']: pools.p.ssl_verify is false",
        "sni_host",
    ),
    ("W018", pool(sni_host="app.test"), "UPSTREAMS['default']: pools.p.sni_host is given", "ssl: true"),
    ("W001", host(weight=1), "UPSTREAMS['default']: pools.p mixes hosts", "or none"),
    ("W002", pool(hosts={"a": TWO["a"]}), "UPSTREAMS['default']: pools.p.hosts.a is the only host", "max_fails 0"),
    ("W003", pool(timeout="20s"), "UPSTREAMS['default']: pools.p.timeout is 20 s", '"TOTAL_TIMEOUT"'),
    (
        "W004",
        default(POOLS={"p": {"hosts": TWO}, "q": {"hosts": TWO}}),
        "UPSTREAMS['default']: pools p, q have the same priority (0)",
        "a priority of its own",
    ),
    ("W005", host(host="192.0.2.2"), "UPSTREAMS['default']: pools.p.hosts: a, b have the same address", "one of"),
    ("W010", pool(hosts={}), "UPSTREAMS['default']: pools.p has no hosts", "Add a host"),
    ("W011", pool(failed_timeout_max=5), "UPSTREAMS['default']: pools.p.failed_timeout_max (5 s) is", "several"),
    (
        "W012",
        default(TRUSTED_PROXIES=["0.0.0.0/0"]),
        "UPSTREAMS['default']['TRUSTED_PROXIES'] trusts everybody",
        '"TRUSTED_PROXIES": ["10.',
    ),
    ("W022", {}, "UPSTREAMS is missing or empty", f'UPSTREAMS = {{"default": {{{STORE}, "POOLS": {{'),
    (
        "W024",
        {"api": upstream()},
        "request.upstream is UPSTREAMS['default'], and UPSTREAMS has only 'api'",
        '"default"',
    ),
]


@pytest.mark.parametrize(("number", "setting", "message", "hint"), WARNINGS, ids=[row[0] for row in WARNINGS])
def test_what_is_hardly_meant_is_a_warning(number: str, setting: object, message: str, hint: str) -> None:
    """With its path, a stable id, and what to write instead."""
    assert_says(found(setting), number, message, hint)


@pytest.mark.parametrize(
    "evidence",
    [
        {"SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https")},
        {"USE_X_FORWARDED_HOST": True},
        {"USE_X_FORWARDED_PORT": True},
        {"FORWARDED_ALLOW_IPS": "10.0.0.1"},
    ],
    ids=lambda evidence: next(iter(evidence)),
)
def test_hash_behind_a_proxy_is_a_warning(evidence: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """W006: whatever tells that the site is behind one; without evidence there is none."""
    hashed = pool(method="hash")
    assert not found(hashed)
    for name, value in evidence.items():
        monkeypatch.setenv(name, str(value))  # which Django does not look at
    with override_settings(**evidence):
        assert_says(found(hashed), "W006", "UPSTREAMS['default']: pools.p.method is hash", '"TRUSTED_PROXIES"')
        assert not found(pool(method="hash", key="cookie:sessionid"))
        assert not found(default(POOLS={"p": {"hosts": TWO, "method": "hash"}}, TRUSTED_PROXIES=["10.0.0.0/8"]))


def test_sticky_sessions_need_nothing_but_django(monkeypatch: pytest.MonkeyPatch) -> None:
    """W013 is for those that sign with itsdangerous."""
    monkeypatch.setitem(sys.modules, "itsdangerous", None)
    assert not found(pool(sticky=True))


def test_a_site_without_the_middleware_is_warned() -> None:
    """W020: also where another one is there, or one that cannot be imported."""
    for others in ([], ["django.middleware.common.CommonMiddleware"], ["nowhere.Middleware"]):
        messages = found(default(), MIDDLEWARE=others)
        assert_says(messages, "W020", f"'{OURS}' is not in MIDDLEWARE", "above all middleware that uses")


class OwnMiddleware(UpstreamMiddleware):
    """A subclass, which is as good."""


@pytest.mark.parametrize(
    "other", [f"{UpstreamMiddleware.__module__}.UpstreamMiddleware", f"{__name__}.OwnMiddleware"]
)
def test_the_middleware_is_known_under_any_name(other: str) -> None:
    """W021: once is right, and twice is once too often."""
    assert not found(default(), MIDDLEWARE=[other])
    assert_says(
        found(default(), MIDDLEWARE=[OURS, other]), "W021", "UpstreamMiddleware is in MIDDLEWARE 2", "upper"
    )


def test_memory_is_a_warning_for_deployments_alone() -> None:
    """W023: tests and one process may have it."""
    assert not found(default())
    path = "UPSTREAMS['default']['STORE'] is 'memory://'"
    assert_says(found(default(), deploy=True), "W023", path, STORE)


@pytest.mark.parametrize("nothing", [{}, {"STORE": None}])
def test_a_store_whose_place_depends_on_the_environment_is_a_warning_for_deployments(
    nothing: dict[str, None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W025: ``manage.py`` in a login shell would meet another one than the service."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    setting = {"default": {"POOLS": {"p": {"hosts": TWO}}, **nothing}}
    assert not found(setting)
    assert_says(found(setting, deploy=True), "W025", "UPSTREAMS['default'] has no STORE", STORE)


def test_a_user_without_a_place_for_the_store_has_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no account."""
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    path = "UPSTREAMS['default']['STORE'] must be given"
    assert_says(found(default(STORE=None)), "E004", path, STORE)


@pytest.mark.parametrize("name", ["MEDIA_ROOT", "STATIC_ROOT"])
def test_a_store_among_files_that_are_served_is_a_warning(name: str, tmp_path: Path) -> None:
    """W026: and one beside them is not."""
    inside = default(STORE=f"sqlite://{tmp_path}/files/private/upstreams.db")
    path = "UPSTREAMS['default']['STORE'] is below " + name
    for root in (tmp_path / "files", f"{tmp_path}/files/", os.path.relpath(tmp_path / "files")):
        assert_says(found(inside, **{name: root}), "W026", path, STORE)
    assert not found(default(STORE=f"sqlite://{tmp_path}/files.db"), **{name: str(tmp_path / "files")})


def test_sessions_that_the_admins_page_would_keep_for_ever_are_a_warning_for_deployments() -> None:
    """W027: and not without an admin."""
    setting = default(STORE=f"sqlite://{Path.cwd()}/nowhere/upstreams.db")
    messages = found(setting, deploy=True, SESSION_SAVE_EVERY_REQUEST=True)
    assert_says(messages, "W027", "SESSION_SAVE_EVERY_REQUEST is set", "silence")
    without = [app for app in settings.INSTALLED_APPS if app != "django.contrib.admin"]
    assert not found(setting, deploy=True, SESSION_SAVE_EVERY_REQUEST=True, INSTALLED_APPS=without)
    assert not found(setting, SESSION_SAVE_EVERY_REQUEST=True)
    assert not found(setting, deploy=True)


def test_one_that_is_broken_does_not_hide_the_others() -> None:
    """And of each all problems are said, one message for each."""
    broken = {"STORE": 5, "TOTAL_TIMEOUT": -1, "POOLS": {"p": {"timeout": -1, "hosts": []}}}
    setting = {"x": broken, "default": upstream(), "y": None, 7: upstream(), "z": upstream(POOLS={"p": {}})}
    messages = found(setting)
    assert numbers(messages) == ["E003", "E007", "E003", "E001", "E001", "E005", "W010"]
    whose = [message.msg.partition("]")[0] for message in messages]
    assert whose == ["UPSTREAMS['x'", *["UPSTREAMS['x'"] * 3, "UPSTREAMS['y'", "UPSTREAMS[7", "UPSTREAMS['z'"]


# ── what is as it should be ───────────────────────────────────────────────────────────────────


def setting_of_the_readme() -> dict[str, Any]:
    """What the README tells to write into the settings."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "INSTALLED_APPS = [" in block]
    statements = [node for node in ast.parse(block).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in statements}


def test_what_the_readme_says_is_fine(tmp_path: Path) -> None:
    """Only its store is in another place here; also for a deployment."""
    settings = setting_of_the_readme()
    assert settings["INSTALLED_APPS"] == ["resty_upstream.contrib.django"]
    written = settings["UPSTREAMS"]["default"]
    assert written["STORE"] in STORE
    written["STORE"] = f"sqlite://{tmp_path}/myapp/upstreams.db"
    assert not found(settings["UPSTREAMS"], deploy=True, MIDDLEWARE=settings["MIDDLEWARE"])


def test_a_site_without_the_setting_is_warned_once() -> None:
    """As one whose setting is empty."""
    with override_settings(MIDDLEWARE=[OURS]):
        from django.conf import settings

        del settings.UPSTREAMS
        assert numbers(run_checks(tags=["upstream"], include_deployment_checks=True)) == ["W022"]


def test_each_can_be_silenced() -> None:
    """By its id."""
    stderr = io.StringIO()
    with override_settings(
        MIDDLEWARE=[], UPSTREAMS=default(STORE=5), SILENCED_SYSTEM_CHECKS=["resty_upstream.E007"]
    ):
        call_command("check", tags=["upstream"], stderr=stderr)
    assert "resty_upstream.W020" in stderr.getvalue()
    assert "resty_upstream.E007" not in stderr.getvalue()
    assert "(1 silenced)" in stderr.getvalue()


# ── the store ─────────────────────────────────────────────────────────────────────────────────


def in_file(directory: Path, **options: Any) -> dict[str, Any]:
    """The setting with a store in a file of this directory."""
    return default(STORE=f"sqlite://{directory}/upstreams.db", **options)


def test_a_store_that_others_could_change_is_a_warning(tmp_path: Path) -> None:
    """W008: which blocks no command."""
    tmp_path.chmod(0o777)
    setting = in_file(tmp_path)
    path = f"UPSTREAMS['default']['STORE']: others can write in {tmp_path}"
    assert_says(found(setting), "W008", path, STORE)
    assert_blocks_nothing(setting)
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_created_is_a_warning(tmp_path: Path) -> None:
    """W009: an image is built where there is no place for it."""
    (tmp_path / "file").touch()
    setting = in_file(tmp_path / "file" / "private")
    path = f"UPSTREAMS['default']['STORE']: {tmp_path}/file/private cannot be created"
    assert_says(found(setting), "W009", path, "serves from what is declared")
    assert_blocks_nothing(setting)


@pytest.mark.parametrize("name", ["upstreams.db", "x" * 300])
def test_a_file_that_is_no_store_is_a_warning(name: str, tmp_path: Path) -> None:
    """W009: and is left as it is; so is a name that no file can have."""
    tmp_path.chmod(0o700)
    (tmp_path / "upstreams.db").write_bytes(b"a letter")
    setting = default(STORE=f"sqlite://{tmp_path}/{name}")
    assert_says(found(setting), "W009", f"UPSTREAMS['default']['STORE']: {tmp_path}/{name}", "declared")
    assert_blocks_nothing(setting)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"a letter"]


def assert_blocks_nothing(setting: object) -> None:
    """A command that checks the system first goes on."""
    with override_settings(MIDDLEWARE=[OURS], UPSTREAMS=setting):
        call_command("check", stderr=io.StringIO())


def content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, as another process reads them."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    database.close()
    return rows


def used_files(directory: Path) -> list[str]:
    """What this process has open, or mapped, of a directory."""
    links = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if is_open(number)]
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return [name for name in [*links, *mapped] if str(directory) in name]


def is_open(number: str) -> bool:
    """Whether there still is such a descriptor: the one that lists them is gone."""
    return os.path.lexists(f"/proc/self/fd/{number}")


def test_what_a_change_at_run_time_hides_is_a_warning(tmp_path: Path) -> None:
    """W007: seen in the store of a site that is running, whose rows and generation stay as they are."""
    setting = in_file(tmp_path / "private", POOLS={"p": {"priority": 1, "hosts": TWO}})
    with override_settings(MIDDLEWARE=[OURS], UPSTREAMS=setting):
        site = get_upstream()
        UpstreamAPI(site).set_priority("p", 5)
        UpstreamAPI(site).down_host("p", "a")
        before, version = content(tmp_path / "private" / "upstreams.db"), site.store.version("default")
        assert before["record"]
        messages = run_checks(tags=["upstream"], include_deployment_checks=True)
        assert used_files(tmp_path)  # the site's store was not closed
        printed = check_site(tmp_path, UPSTREAMS=setting).stderr
        assert content(tmp_path / "private" / "upstreams.db") == before
        assert site.store.version("default") == version
        assert get_upstream() is site
    path = "UPSTREAMS['default']: pools.p.priority is declared as 1, but was changed to 5"
    assert_says(messages, "W007", path, "undo it, or declare what is used")
    assert f"?: (resty_upstream.W007) {path}" in printed


def test_no_store_is_left_open(tmp_path: Path) -> None:
    """Nor is an upstream kept: the site makes its own when it uses one."""
    setting = in_file(tmp_path / "private")
    with override_settings(UPSTREAMS=setting):
        get_upstream().get_pools()
        assert used_files(tmp_path)  # a guard
        get_upstream().close()
    assert not used_files(tmp_path)
    with override_settings(MIDDLEWARE=[OURS], UPSTREAMS=setting):
        assert not run_checks(tags=["upstream"], include_deployment_checks=True)
        assert not used_files(tmp_path)
        kept = get_upstream()
        run_checks(tags=["upstream"])
        assert get_upstream() is kept


def test_a_store_object_is_looked_at_too(tmp_path: Path) -> None:
    """And works on."""
    store = open_store(f"sqlite://{tmp_path}/private/upstreams.db")
    with override_settings(MIDDLEWARE=[OURS], UPSTREAMS=default(STORE=store)):
        api = UpstreamAPI(get_upstream())
        api.set_priority("p", 5)
        assert numbers(run_checks(tags=["upstream"])) == ["W007"]
        api.set_priority("p", 0)
        assert not run_checks(tags=["upstream"])
    store.close()


# ── any setting ───────────────────────────────────────────────────────────────────────────────

PASSWORD = "correct-horse"
URLS = [
    f"redis://user:{PASSWORD}@10.0.0.1:6379/0",
    f"rediss://:{PASSWORD}@10.0.0.1",
    f"redis://10.0.0.1/0?password={PASSWORD}",
    f"redis://user:{'long' * 30}{PASSWORD}@10.0.0.1",
    f"sqlite://user:{PASSWORD}@/run/upstreams.db",
    f"user:{PASSWORD}@10.0.0.1",
    f"redis://user:@{PASSWORD}?@10.0.0.1",
]

_options = ["STORE", "POOLS", "TOTAL_TIMEOUT", "LAST_RESORT", "p", "hosts", "host", "port", "weight", "timeout"]
_keys = (
    st.sampled_from([*_options, "method", "priority", "up", "default", ""]) | st.integers() | st.text(max_size=5)
)
_urls = st.sampled_from([*URLS, "memory://", "sqlite:///nowhere/private/upstreams.db", "sqlite://[", "sqlite:///"])
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | _urls
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4), max_leaves=12
)
_upstreams = st.fixed_dictionaries({}, optional=dict.fromkeys(_options[:4], _values)) | _values
_settings = st.dictionaries(st.sampled_from(["default", "api"]) | _keys, _upstreams, max_size=3) | _values


@given(_settings)
def test_no_setting_makes_a_check_fail(setting: object) -> None:
    """An error is found where using an upstream raises one, and nowhere else."""
    messages = found(setting, deploy=True)
    assert all(re.fullmatch(r"resty_upstream\.[EW]0\d\d", str(message.id)) for message in messages)
    assert all(message.hint for message in messages)
    refused = [message.msg for message in messages if message.level == ERROR]
    with override_settings(UPSTREAMS=setting):
        assert refused == [problem for alias in setting_names(setting) for problem in problems_of(alias)]


def setting_names(setting: object) -> list[Any]:
    return list(setting) if isinstance(setting, dict) else ["default"]


def problems_of(alias: Any) -> list[str]:
    """What using an upstream complains of."""
    try:
        get_upstream(alias)
    except InvalidConfig as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("url", URLS)
@given(data=st.data())
def test_no_password_is_printed(url: str, data: st.DataObject) -> None:
    """Wherever a URL with one was written by mistake."""
    place = data.draw(
        st.sampled_from(
            [
                lambda value: value,
                lambda value: {"default": value},
                lambda value: default(STORE=value),
                lambda value: default(TOTAL_TIMEOUT=value),
                lambda value: default(POOLS=value),
                lambda value: pool(hosts=value),
                lambda value: host(host=value),
            ]
        )
    )
    wrap: Callable[[Any], Any] = data.draw(st.sampled_from([lambda value: value, lambda value: [{"URL": value}]]))
    messages = found(place(wrap(url)), deploy=True)
    assert messages
    assert PASSWORD not in "".join(map(str, messages))


def calls_of_checks(count: int) -> int:
    """How many function calls it takes to check this many hosts."""
    hosts = {f"h{number}": {"host": f"{number}.test"} for number in range(count)}
    calls = 0

    def count_call(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count_call)
    try:
        assert not found(pool(hosts=hosts))
    finally:
        sys.setprofile(None)
    return calls


def test_the_work_grows_with_the_hosts_and_no_faster() -> None:
    """Ten times the hosts are ten times the work, or less."""
    calls_of_checks(2)
    assert calls_of_checks(1000) < 11 * calls_of_checks(100)


# ── the command ───────────────────────────────────────────────────────────────────────────────


def check_site(directory: Path, *options: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """``manage.py check`` of a site whose settings are in this directory."""
    apps = {"INSTALLED_APPS": ["resty_upstream.contrib.django"], "MIDDLEWARE": [OURS], "SECRET_KEY": "x"}
    lines = [f"{name} = {value!r}" for name, value in {**apps, **settings}.items()]
    (directory / "checked_site.py").write_text("\n".join(lines))
    environment = {"DJANGO_SETTINGS_MODULE": "checked_site", "PYTHONPATH": f"{ROOT}:{directory}"}
    return subprocess.run(
        python("-W", "error", "-m", "django", "check", *options),
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_says_what_is_wrong_and_what_to_write(tmp_path: Path) -> None:
    """And ends with an error for an error alone."""
    done = check_site(tmp_path, "--tag", "upstream", UPSTREAMS=host(port=0))
    assert done.returncode == 1
    assert "ERRORS:\n?: (resty_upstream.E003) UPSTREAMS['default']: pools.p.hosts.a.port must be" in done.stderr
    assert "\tHINT: Numbers are" in done.stderr
    done = check_site(tmp_path, UPSTREAMS=pool(hosts={}))
    assert done.returncode == 0
    assert "WARNINGS:\n?: (resty_upstream.W010) UPSTREAMS['default']: pools.p has no hosts" in done.stderr


def test_the_command_looks_at_the_deployment_when_told(tmp_path: Path) -> None:
    """Beside Django's own checks of it."""
    done = check_site(tmp_path, "--deploy", UPSTREAMS=default())
    assert done.returncode == 0
    assert "?: (resty_upstream.W023) UPSTREAMS['default']['STORE'] is 'memory://'" in done.stderr
    assert "security." in done.stderr
    done = check_site(tmp_path, "--tag", "upstream", UPSTREAMS=default())
    assert (done.returncode, done.stderr) == (0, "")
    assert "no issues" in done.stdout


# ── a request without the middleware ──────────────────────────────────────────────────────────


def ask_for(name: str) -> Any:
    """A middleware that uses this attribute of the request."""

    @sync_and_async_middleware
    def asking(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
        async def middleware(request: HttpRequest) -> Any:
            getattr(request, name)
            return await get_response(request)

        return middleware if iscoroutinefunction(get_response) else lambda request: getattr(request, name)

    return asking


ask_for_upstream, ask_for_upstreams = ask_for("upstream"), ask_for("upstreams")


@pytest.mark.parametrize("name", ["upstream", "upstreams"])
def test_without_the_middleware_the_error_says_where_to_add_it(name: str) -> None:
    """Also where it is there, and comes after the one that asks; in both stacks."""
    says = rf"request\.{name} needs '{re.escape(OURS)}' in MIDDLEWARE, above all middleware that uses it"
    with pytest.raises(AttributeError, match=says):
        getattr(RequestFactory().get("/"), name)
    with override_settings(MIDDLEWARE=[f"{__name__}.ask_for_{name}", OURS]):
        with pytest.raises(AttributeError, match=says):
            Client().get("/")
        with pytest.raises(AttributeError, match=says):
            asyncio.run(AsyncClient().get("/"))
