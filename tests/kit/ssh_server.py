"""A real OpenSSH server on this machine, for the tests of `--device ssh://…`.

Debian's openssh-server, unpacked into a cache and started by whoever runs the tests on a high port,
with keys of its own. nss_wrapper (of the cwrap project) tells it of one user, `tester`, who has our
user id and a home in the test's folder: nothing of the account that runs the tests is read. As root
it wants a user and a folder for its unprivileged half too.
"""

from __future__ import annotations

import functools
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kit.debian_packages import ToolsError, download, missing_programs, unpack
from tests.kit.llama_tools import unavailable as unavailable_here

SUITE = "bookworm"
PACKAGES = ("openssh-server", "libnss-wrapper")
NEEDED = ("openssh-", "lib", "zlib1g_")  # of what they depend on: the rest are installers
READY = "READY"  # written last: a folder that has it is whole
LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
CHROOT = Path("/run/sshd")

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
UsePAM no
StrictModes no
PidFile none
PermitRootLogin yes
PasswordAuthentication no
SetEnv {environment}
"""

CLIENT = """\
Host *
    IdentityFile {folder}/user
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    LogLevel ERROR
"""


@functools.cache
def unpacked() -> Path:
    """The server's files (about 60 MB), downloaded once. Raises ToolsError when they can't be."""
    reason = unavailable_here()
    if reason is not None or missing_programs():
        raise ToolsError(f"no sshd for the tests: {reason or missing_programs()}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emo-export-tests"
    place = cache / f"openssh-{SUITE}"
    if not (place / READY).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=cache) as name:
            root = Path(name) / "root"
            for package in download(Path(name) / "apt", SUITE, PACKAGES):
                if package.name.startswith(NEEDED):
                    unpack(package, root)
            (root / READY).touch()
            try:
                root.rename(place)
            except OSError:
                if not (place / READY).is_file():  # else another process was faster
                    raise
    return place


def _command(program: str, *, preload: str = "") -> list[str]:
    """What starts an unpacked program, with its own loader and libraries."""
    root = unpacked()
    loader = [str(root / LIBRARIES[0] / "ld-linux-x86-64.so.2")]
    loader += ["--preload", str(root / LIBRARIES[1] / preload)] if preload else []
    path = ":".join(str(root / folder) for folder in LIBRARIES)
    return [*loader, "--library-path", path, str(root / program)]


@dataclass(frozen=True)
class SshServer:
    """A running server: `url` to give to --device, `ssh` for EMO_EXPORT_SSH, `home` over there."""

    folder: Path
    port: int
    process: int

    @property
    def url(self) -> str:
        return f"ssh://tester@127.0.0.1:{self.port}"

    @property
    def ssh(self) -> str:
        return shlex.join(["ssh", "-F", str(self.folder / "client")])

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "emo-export"

    @contextmanager
    def login(self, shell: str, script: str) -> Iterator[None]:
        """Give the user another login shell, and bash (which sshd starts) this `.bashrc`."""
        users, start = self.folder / "passwd", self.home / ".bashrc"
        before = users.read_text("utf-8")
        users.write_text(before.replace("/home:/bin/sh\n", f"/home:{shell}\n"), "utf-8")
        start.write_text(f"{script}\n", "utf-8")
        try:
            yield
        finally:
            users.write_text(before, "utf-8")
            start.unlink()

    def left_behind(self) -> set[str]:
        """What is in the home there, up to the third level."""
        return {p.relative_to(self.home).as_posix() for p in self.home.glob("**/*")}

    def cut(self) -> None:
        """End every connection, without the server's ending what runs in them."""
        for process in _children(self.process):
            for inner in [process, *_children(process)]:
                if b"sshd" in _program(inner):
                    os.kill(inner, signal.SIGKILL)


def _children(process: int) -> list[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text("ascii")
    except OSError:
        return []
    return [int(number) for number in text.split()]


def _program(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def ssh_server(folder: Path, environment: Mapping[str, str]) -> Iterator[SshServer]:
    """Start a server whose sessions have this environment; `folder` keeps all that it writes."""
    (folder / "home").mkdir(parents=True)
    for name in ("host", "user"):
        keygen = [*_command("usr/bin/ssh-keygen"), "-q", "-t", "ed25519", "-N", ""]
        subprocess.run([*keygen, "-f", str(folder / name)], check=True)
    port = _free_port()
    shown = " ".join(f'"{name}={value}"' for name, value in environment.items())
    config = CONFIG.format(port=port, folder=folder, environment=shown)
    (folder / "config").write_text(config, "utf-8")
    (folder / "client").write_text(CLIENT.format(folder=folder), "utf-8")
    key = (folder / "host.pub").read_text("ascii")
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key}", "ascii")
    me, group = os.getuid(), os.getgid()
    (folder / "passwd").write_text(
        f"tester:x:{me}:{group}::{folder}/home:/bin/sh\nsshd:x:65534:65534::{CHROOT}:/bin/false\n",
        "utf-8",
    )
    (folder / "group").write_text(f"tester:x:{group}:\n", "utf-8")
    if me == 0:
        CHROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
    users = {"NSS_WRAPPER_PASSWD": f"{folder}/passwd", "NSS_WRAPPER_GROUP": f"{folder}/group"}
    # -r: it would start itself again for each connection, without its loader
    command = [*_command("usr/sbin/sshd", preload="libnss_wrapper.so"), "-r", "-D", "-e"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-f", str(folder / "config")], stderr=log, env={**os.environ, **users}
        )
    server = SshServer(folder, port, process.pid)
    try:
        _wait_for(port, process, folder / "log")
        yield server
    finally:
        server.cut()
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if process.poll() is None and probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise ToolsError(f"sshd did not start: {log.read_text('utf-8')}")
