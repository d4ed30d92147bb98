"""Who may use the service, and how often."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from framepack.errors import InputError

LOCAL = "local"
"""The one client of a service without tokens."""
SHORTEST = 16
"""Characters of a token at least."""
MINUTE = 60.0
MONTH = 30 * 86400
"""Seconds that a browser stays signed in."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
SECONDS = re.compile(r"[0-9]{1,12}")
KEY = "key"
"""File of the service's own secret, which sessions are made with."""


@dataclass(frozen=True)
class Tokens:
    """Secrets by the names of their clients; none at all lets everybody in as ``LOCAL``."""

    secrets: Mapping[str, str]

    @classmethod
    def parse(cls, given: list[str]) -> Tokens:
        """``SECRET`` or ``NAME:SECRET``, each. Raises InputError, which tells no secret."""
        found: dict[str, str] = {}
        for number, text in enumerate(given, start=1):
            name, colon, secret = text.strip().partition(":")
            if not colon:
                name, secret = (LOCAL if len(given) == 1 else f"client{number}"), name
            if not NAME.fullmatch(name):
                raise InputError(
                    f"token {number} has a name of other characters than letters, digits and ._-"
                )
            if len(secret) < SHORTEST or not secret.isascii() or not secret.isprintable():
                raise InputError(
                    f"token {number} must have {SHORTEST} characters or more of ASCII: make one with "
                    "python -c 'import secrets; print(secrets.token_urlsafe())'"
                )
            if name in found:
                raise InputError(f"two tokens are called '{name}': give each a name of its own")
            found[name] = secret
        return cls(found)

    def client(self, given: str) -> str | None:
        """Whose token this is. Takes as long for one that is nearly right as for any other."""
        found = None
        theirs = hashlib.sha256(given.encode(errors="replace")).digest()
        for name, secret in self.secrets.items():
            if hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), theirs):
                found = name
        return found


class Sessions:
    """Cookies of browsers that have shown a token: they hold no token, and end with it or after a month.

    Args:
        folder: of the service; its secret is kept there, for its user alone.
    """

    def __init__(self, tokens: Tokens, folder: Path) -> None:
        self.tokens, self._key = tokens, _secret(folder)

    def cookie(self, client: str) -> str:
        return self._signed(client, int(time.time()))

    def client(self, cookie: str) -> str | None:
        """Whose cookie this is; None: nobody's, or no longer."""
        name, _, rest = cookie.partition(":")
        written = rest.partition(":")[0]
        if name not in self.tokens.secrets or not SECONDS.fullmatch(written):
            return None
        if not hmac.compare_digest(
            self._signed(name, int(written)).encode(), cookie.encode(errors="replace")
        ):
            return None
        return name if time.time() - int(written) < MONTH else None

    def _signed(self, client: str, written: int) -> str:
        told = f"{client}\0{self.tokens.secrets[client]}\0{written}".encode()
        return f"{client}:{written}:{hmac.new(self._key, told, hashlib.sha256).hexdigest()}"


def _secret(folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / KEY
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(32))
    return path.read_bytes()


class Rate:
    """At most so many calls of each client in a minute; each server process counts its own."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._calls: dict[str, deque[float]] = {}

    def seconds_left(self, client: str) -> float:
        """Count a call; 0 if it may be, else seconds until one may."""
        now = time.monotonic()
        with self._lock:
            calls = self._calls.setdefault(client, deque())
            while calls and calls[0] <= now - MINUTE:
                calls.popleft()
            if len(calls) >= self.most:
                return calls[0] + MINUTE - now
            calls.append(now)
            for name in [name for name, theirs in self._calls.items() if theirs[-1] <= now - MINUTE]:
                del self._calls[name]
            return 0.0
