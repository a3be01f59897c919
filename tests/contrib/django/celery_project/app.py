"""The Celery application, and its tasks."""

from __future__ import annotations

import os

from celery import Celery
from django.dispatch import receiver

from resty_upstream import HostEvent
from resty_upstream.contrib.django import get_upstream
from resty_upstream.contrib.django.signals import host_down
from tests.contrib.bed import journal

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.contrib.django.celery_project.settings")
app = Celery("site")
app.config_from_object("django.conf:settings", namespace="CELERY")

if "SITE_USES_AT_IMPORT" in os.environ:
    get_upstream("cache").get_pools()  # in the process that forks the others


@receiver(host_down)
def hear(event: HostEvent, **kwargs: object) -> None:
    """Tells in which process it is heard."""
    journal.write(f"process {os.getpid()}", f"{event.name} of {os.environ['SITE_NAME']}")


@app.task
def call(name: str, gate: int) -> None:
    """One call, and a gate before the task is over."""
    with get_upstream("cache").context() as upstream:
        client, info = upstream.connect()
        client.close()
        journal.write(f"process {os.getpid()}", name)
        journal.write("tries " + " ".join(attempt.host.id for attempt in info.attempts), name)
        journal.write("is at the gate", name)
        journal.pass_gate(gate)
    journal.write("is over", name)
