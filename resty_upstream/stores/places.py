"""Where a store may be: a private place for each application, and what makes a directory private."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from urllib.parse import quote

from resty_upstream.errors import InvalidConfig, Problem, StoreUnavailable, StoreUnsafe


def default_url(application: str) -> str:
    """The URL of the store of an application that names none.

    In ``$RUNTIME_DIRECTORY`` or ``$XDG_RUNTIME_DIR``, ``/run`` for root, else in the user's state directory;
    below it a directory named after the application, so that two applications of one user do not meet.

    :raises InvalidConfig: when the user has no such place.
    """
    digest = hashlib.blake2b(application.encode(), digest_size=6).hexdigest()
    path = _runtime_directory() / f"resty_upstream-{digest}" / "upstreams.db"
    return "sqlite://" + quote(str(path))


def _runtime_directory() -> Path:
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        # systemd gives several directories separated by colons.
        first = os.environ.get(name, "").partition(":")[0]
        if first.startswith("/"):
            return Path(first)
    if os.geteuid() == 0:
        return Path("/run")
    state_home = os.environ.get("XDG_STATE_HOME", "")
    if state_home.startswith("/"):
        return Path(state_home)
    try:
        return Path.home() / ".local" / "state"
    except RuntimeError:  # $HOME is not set, and the user has no account
        what = "store must be given, as 'sqlite:///run/myapp/upstreams.db': this user has no home directory"
        raise InvalidConfig(Problem(what, "missing")) from None


def require_private_directory(directory: str) -> None:
    """Create the directory if need be; refuse one in which others could put files in our place.

    :raises StoreUnavailable: saying what to do.
    """
    for path in reversed(_missing(directory)):
        with contextlib.suppress(FileExistsError):  # another worker starts at the same time
            os.mkdir(path, 0o700)
    _require_own_directory(directory)


def examine_directory(directory: str) -> bool:
    """Whether there is such a directory.

    :raises StoreUnavailable: when it could not be used or, if there is none, not be created.
    """
    missing = _missing(directory)
    if not missing:
        _require_own_directory(directory)
        return True
    parent = os.path.dirname(missing[-1])
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StoreUnavailable(
            f"{directory} cannot be created by user {os.geteuid()}: create it for that user, or name another place"
        )
    return False


def _missing(directory: str) -> list[str]:
    """The directories that are not there, the innermost in front; above them all is safe."""
    missing = []
    current = directory
    while not os.path.lexists(current):
        missing.append(current)
        current = os.path.dirname(current)
    _require_safe_ancestors(current, directory)
    return missing


def _require_own_directory(directory: str) -> None:
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise StoreUnavailable(f"{directory} is not a directory: the store needs one of its own there")
    if found.st_uid != os.geteuid():
        raise StoreUnavailable(
            f"{directory} belongs to user {found.st_uid}, this process is user {os.geteuid()}: "
            "give the store a directory of its own user, or run as that user (sudo -u …)"
        )
    if found.st_mode & 0o022:
        # Such as /tmp, which is for everybody
        todo = f"as {directory}/myapp" if found.st_mode & stat.S_ISVTX else f"chmod 700 {directory}"
        raise StoreUnsafe(f"others can write in {directory}: give the store a directory of its own ({todo})")


def _require_safe_ancestors(path: str, directory: str) -> None:
    while True:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            raise StoreUnsafe(
                f"{path} is a symbolic link: name the store's real place, {os.path.realpath(directory)}"
            )
        others_write = found.st_mode & 0o002 and not found.st_mode & stat.S_ISVTX
        if others_write and path != directory:
            raise StoreUnsafe(
                f"everyone can write in {path}, above the store: name a place in a directory that only "
                "its owner can change"
            )
        parent = os.path.dirname(path)
        if parent == path:
            return
        path = parent
