"""A PostgreSQL of our own, from the system's binaries, for as long as the tests run.

initdb refuses root, so as root it runs as another user. No data is worth anything here, so it need not reach the disk.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PASSWORD = "p@ss:w/rd"  # what a URL must not be confused by
USERS = ("postgres", "nobody")


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl, Debian's newest first; None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    candidates = [*reversed(found), *([Path(on_path)] if on_path else [])]
    return candidates[0].resolve().parent if candidates else None


def missing() -> str | None:
    """Why no server can be started here, or None."""
    if os.name != "posix":
        return "PostgreSQL is started on Linux and macOS only"
    if binaries() is None:
        return "PostgreSQL's initdb was not found; apt install postgresql"
    if os.geteuid() == 0 and _user() is None:
        return "initdb refuses root, and there is no user postgres or nobody to run it as"
    return None


def _user() -> str | None:
    import pwd

    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((user for user in USERS if user in known), None)


class Server:
    """A server on a free port of this machine; `stop` and `start` it at will, `close` it in the end."""

    def __init__(self, fsync: bool = False, folder: Path | None = None) -> None:
        """folder: of a server that was closed by `stop`, or a new one's, to be started again; else a temporary one."""
        found = binaries()
        assert found is not None
        self._bin = found
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder or Path(tempfile.mkdtemp(prefix="feedback_loop_pg_"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:
            self._as = {"user": _user(), "group": _group(), "extra_groups": []}
            shutil.chown(self._folder, _user())
        if not (self._folder / "data").exists():
            self._init()
        self._set(port=self.port, fsync="on" if fsync else "off")
        self.start()

    def _init(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD + "\n")
        if self._as:
            shutil.chown(password, _user())
        data = str(self._folder / "data")
        self._run(
            "initdb", "-D", data, "-U", "me", f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync"
        )
        self._set(
            listen_addresses="'127.0.0.1'",
            unix_socket_directories=f"'{self._folder}'",
            max_connections=200,
            max_wal_size="'8GB'",
        )

    def _set(self, **settings: object) -> None:
        with open(self._folder / "data" / "postgresql.conf", "a", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self._bin / name), *arguments]
        with open(self._folder / "log", "a", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=log, stderr=log, cwd=self._folder, **self._as)  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"{name} failed: {(self._folder / 'log').read_text()[-2000:]}")

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-l", str(self._folder / "server"), "-t", "300", "start")

    def stop(self, mode: str = "immediate") -> None:
        """immediate: as if the power failed; fast: connections are ended first."""
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", mode, "-t", "300", "stop")

    def runs(self) -> bool:
        return (self._folder / "data" / "postmaster.pid").exists()

    def url(self, database: str = "postgres") -> str:
        from urllib.parse import quote

        return f"postgresql://me:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str) -> None:
        """Statements outside of a transaction, as an administrator would give them."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[arg-type]

    def close(self) -> None:
        try:
            if self.runs():
                self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _group() -> str:
    import grp
    import pwd

    user = _user()
    assert user is not None
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
