"""A PostgreSQL server of the tests' own: in a temporary folder, on a socket there, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

INSTALL = "apt-get install postgresql"
PORT = 5432
"""Part of the socket's name; nothing listens on the network."""


def find(program: str) -> str | None:
    """Debian keeps them out of the PATH, by version."""
    there = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return shutil.which(program) or (str(there[-1]) if there else None)


class Server:
    """Its URL, and ways to stop and start it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql+psycopg://postgres@/postgres?host={folder}&port={PORT}"
        initdb, control = find("initdb"), find("pg_ctl")
        if initdb is None or control is None:
            pytest.skip(f"no PostgreSQL here: {INSTALL}")
        self.control = control
        self._as_user([initdb, "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "-N"])

    def start(self) -> None:
        settings = f"-k {self.folder} -p {PORT} -c listen_addresses='' -c fsync=off"
        self._as_user(
            [
                self.control,
                "-D",
                f"{self.folder}/data",
                "-w",
                "-l",
                f"{self.folder}/log",
                "-o",
                settings,
                "start",
            ]
        )

    def stop(self) -> None:
        self._as_user([self.control, "-D", f"{self.folder}/data", "-w", "-m", "fast", "stop"])

    def _as_user(self, command: list[str]) -> None:
        """It refuses to be run as root."""
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr or done.stdout


@contextmanager
def server() -> Iterator[Server]:
    # Short: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            try:
                shutil.chown(folder, "postgres", "postgres")
            except LookupError:
                pytest.skip(f"no PostgreSQL here: {INSTALL}")
        made = Server(folder)
        made.start()
        try:
            yield made
        finally:
            made.stop()
