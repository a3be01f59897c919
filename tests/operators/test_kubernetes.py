"""``contrib/kubernetes``: what the schema wants, and directories and commands that work."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from resty_upstream import StoreUnsafe, Upstream
from tests.e2e.processes import Ports, get, wait_until, wait_until_answers
from tests.operators.commands import CONTRIB, run_tool
from tests.operators.installed import Installed

MANIFESTS = list(yaml.safe_load_all((CONTRIB / "kubernetes" / "myapp.yaml").read_text()))
POD: dict[str, Any] = MANIFESTS[0]["spec"]["template"]["spec"]
CONTAINERS = {container["name"]: container for container in [*POD["initContainers"], *POD["containers"]]}
STORE = "/run/upstreams"
OLDEST = (1, 29)
"""The first version with sidecars."""


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: str(manifest["kind"]))
def test_the_schema_of_kubernetes_has_no_objection(manifest: dict[str, Any]) -> None:
    versions = [v for v in kubernetes_validate.utils.all_versions() if tuple(map(int, v.split("."))) >= OLDEST]
    assert len(versions) > 5
    for version in versions:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_labels_are_those_that_are_selected() -> None:
    deployment, service, budget = (manifest["spec"] for manifest in MANIFESTS)
    labels = deployment["template"]["metadata"]["labels"]
    assert (
        deployment["selector"]["matchLabels"] == service["selector"] == budget["selector"]["matchLabels"] == labels
    )


def test_containers_may_do_little() -> None:
    assert POD["securityContext"]["runAsNonRoot"]
    for container in CONTAINERS.values():
        context = container["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
    assert [name for name, each in CONTAINERS.items() if "runAsUser" in each["securityContext"]] == [
        "store-directory"
    ]


def test_all_who_use_the_store_mount_it_and_are_one_user() -> None:
    for container in CONTAINERS.values():
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == [STORE]
    assert "fsGroup" not in POD["securityContext"]
    (volume,) = POD["volumes"]
    assert "emptyDir" in volume


@pytest.mark.parametrize("mode", [0o777, 0o2777])
def test_the_store_is_refused_in_an_empty_dir_until_its_directory_is_prepared(tmp_path: Path, mode: int) -> None:
    """As kubelet makes it, with and without an fsGroup."""
    volume = tmp_path / "upstreams"
    volume.mkdir()
    volume.chmod(mode)
    upstream = Upstream(f"sqlite://{volume}/myapp/upstreams.db")
    with pytest.raises(StoreUnsafe):
        upstream.open()
    command, *arguments = CONTAINERS["store-directory"]["command"]
    run_tool(command, *(argument.replace(STORE, str(volume)) for argument in arguments))
    prepared = Upstream(f"sqlite://{volume}/myapp/upstreams.db")
    prepared.open()
    assert prepared.replica.trouble is None
    assert (volume / "myapp").stat().st_mode & 0o777 == 0o700
    prepared.close()


def test_the_containers_start_and_the_probes_are_answered(installed: Installed, ports: Ports) -> None:
    port = ports.reserve()
    app, checks = CONTAINERS["app"], CONTAINERS["checks"]
    (declared,) = app["ports"]
    command = " ".join(["/srv/myapp/.venv/bin/" + app["command"][0], *app["command"][1:]])
    command = command.replace(f"0.0.0.0:{declared['containerPort']}", f"127.0.0.1:{port}")
    with installed.start(installed.here(command).split()) as gunicorn:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = app[probe]["httpGet"]
            assert asked["port"] == declared["name"]
            wait_until_answers(gunicorn, port, asked["path"])
        annotations = MANIFESTS[0]["spec"]["template"]["metadata"]["annotations"]
        assert get(port, annotations["prometheus.io/path"]).status == 200
        assert annotations["prometheus.io/port"] == str(declared["containerPort"])
        sidecar = installed.here(
            " ".join(["/srv/myapp/.venv/bin/" + checks["command"][0], *checks["command"][1:]])
        )
        with Installed.start(installed, sidecar.split()) as running:
            wait_until(lambda: "check" in running.printed(), "the sidecar says what it does")


def test_there_is_time_to_end_in_order() -> None:
    graceful_s = runpy.run_path(str(CONTRIB / "gunicorn.conf.py"))["graceful_timeout"]
    pause_s = int(CONTAINERS["app"]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] > graceful_s + pause_s
