"""The main job: a site keeps answering while its back ends die and come back."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

from tests.e2e.processes import wait_until
from tests.e2e.site import Backend, Load, Site

# What a request may take that meets two stopped hosts and finds the third: a host that is to be found by it
# has to be there from its beginning to its end.
TIMEOUT_S = 0.7
LONGEST_REQUEST_S = 2 * TIMEOUT_S + 0.6

StartSite = Callable[..., Site]


class Chaos:
    """Kills, stops and brings back, so that at each moment one host is there that was there for a while."""

    def __init__(self, backends: dict[str, Backend], seed: int) -> None:
        self._backends = backends
        self._random = random.Random(seed)
        self._alive_since = dict.fromkeys(backends, 0.0)
        self.log: list[str] = []

    def step(self) -> None:
        """One random action of those that are allowed now."""
        now = time.monotonic()
        reliable = [name for name, since in self._alive_since.items() if now - since > LONGEST_REQUEST_S]
        gone = [name for name in self._backends if name not in self._alive_since]
        if gone and (len(reliable) < 2 or self._random.random() < 0.5):
            self.bring_back(self._random.choice(gone))
        elif len(reliable) > 1:
            name = self._random.choice(reliable)
            del self._alive_since[name]
            how = self._random.choice(["kill", "stop"])
            self.log.append(f"{how} {name}")
            getattr(self._backends[name], how)()

    def bring_back(self, name: str) -> None:
        self.log.append(f"start {name}")
        self._backends[name].start()
        self._backends[name].wait_until_answers()
        self._alive_since[name] = time.monotonic()

    def bring_all_back(self) -> None:
        for name in self._backends:
            if name not in self._alive_since:
                self.bring_back(name)


def test_no_request_fails_while_back_ends_die_and_come_back(start_site: StartSite) -> None:
    """In random order, killed and stopped, with one of any pool alive: every response is 200."""
    seed = random.randrange(1_000_000)
    site = start_site(workers=3, timeout=f"{TIMEOUT_S}s", failed_timeout=1, failed_timeout_max=2)
    chaos = Chaos(site.backends, seed)
    with Load(site.port) as load:
        began = time.monotonic()
        while time.monotonic() < began + 10:
            chaos.step()
            time.sleep(0.3)
        chaos.bring_all_back()
        wait_until(lambda: site.host("a")["up"] and site.host("b")["up"], "a and b are used again")
        recovered = load.wait_until_all_began_after_now()
    story = f"seed {seed}: {chaos.log}"
    assert not load.failed(), story
    assert len(load.results) > 200, story
    assert {result.worker for result in load.results} == site.pids()
    answered = Counter(result.host for result in load.results)
    assert answered["a"], story
    assert answered["b"], story
    assert {result.host for result in load.since(recovered)} <= {"a", "b"}, story


def wait_until_failed(site: Site, name: str) -> None:
    """Down; of the last host one failure may be all, for the last resort then finds one that is back."""

    def failed() -> bool:
        host = site.host(name)
        return not host["up"] or (name == "c" and host["failcount"] > 0)

    wait_until(failed, f"{name} has failed")


def test_no_request_fails_in_a_rolling_restart(start_site: StartSite) -> None:
    """One after the other is away for a moment, and marked for long: the last resort finds who is back."""
    site = start_site(timeout="1s", failed_timeout=60)
    with Load(site.port) as load:
        for backend in site.backends.values():
            load.wait_until_all_began_after_now()
            backend.kill()
            wait_until_failed(site, backend.name)
            time.sleep(0.7)
            backend.start()
            backend.wait_until_answers()
        recovered = load.wait_until_all_began_after_now()
    assert not load.failed()
    assert load.since(recovered)
    assert {result.host for result in load.results} == {"a", "b", "c"}


def test_with_all_hosts_gone_the_answer_says_so_and_the_first_to_return_is_found(start_site: StartSite) -> None:
    """A gateway's status, soon; and no waiting for ``failed_timeout`` when a host is back."""
    site = start_site(timeout="1s", failed_timeout=60)
    for backend in site.backends.values():
        backend.kill()
    with Load(site.port) as load:
        wait_until(lambda: not any(site.host(name)["up"] for name in "abc"), "all hosts are down")
        load.wait_until_all_began_after_now()
        assert {result.status for result in load.results} == {504}
        site.backends["b"].start()
        site.backends["b"].wait_until_answers()
        back = load.wait_until_all_began_after_now()
        load.wait_until_all_began_after_now()
    assert {(result.status, result.host) for result in load.since(back)} == {(200, "b")}
