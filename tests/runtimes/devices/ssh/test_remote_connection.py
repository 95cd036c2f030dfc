"""Getting in over ssh: login shells and scripts of all kinds, and why a connection fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.ssh.link import COMMAND
from emo_export.runtimes.devices.ssh.remote import SshDevice, clean_remote
from tests.kit.debian_packages import download, unpack
from tests.kit.ssh_server import LIBRARIES, SUITE, SshServer
from tests.runtimes.devices.ssh.far import put_program, targets_of

pytestmark = pytest.mark.slow

SHELLS = ("tcsh", "zsh", "mksh")


def test_a_login_script_may_talk(folder: Path, device: SshDevice, programs: Path) -> None:
    put_program(programs, "sh", 'echo Welcome; echo "emo"; exec /bin/sh "$@"')
    try:
        assert device.place(folder, targets_of(folder))
    finally:
        (programs / "sh").unlink()


@pytest.mark.parametrize(
    "script",
    [
        'printf "no end of line: "',
        "echo Welcome; echo Warning >&2; head -c 500000 /dev/zero >&2",
        "export LC_ALL=C PYTHONINSPECT=1 PYTHONPATH=/nowhere; umask 777",
        "export XDG_CACHE_HOME=relative/cache; cd /",
        "set -eu",
    ],
)
def test_a_login_script_may_do_this(
    server: SshServer, folder: Path, device: SshDevice, script: str
) -> None:
    with server.login("/bin/bash", script.replace("relative", str(server.home)[1:])):
        place = device.place(folder, targets_of(folder))
        done = device.run([place, "gguf:f32", "--sequences", "1", "--heldout-tokens", "8"])
    assert done.code == 0, done.stderr


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("yes noise", "what its login scripts print does not end: 'noise'"),
        ("base64 -w 0 /dev/zero", "does not end: 'AAAA"),
        (
            "echo Only on Sundays.; exit 1",
            r"could not open a session there \(exit 1\)\nOnly on Sun",
        ),
        ("export XDG_CACHE_HOME=/proc/nowhere", "can't be written to; give it another"),
        ("export PYTHONHOME=/nowhere", r"python3 \(does not start\)"),
    ],
)
def test_a_login_script_that_is_in_the_way_is_told(
    server: SshServer, script: str, said: str
) -> None:
    with server.login("/bin/bash", script), pytest.raises(EmoExportError, match=said):
        clean_remote(server.url)


def test_a_shell_that_waits_is_given_up(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emo_export.runtimes.devices.ssh.link.PROBE_SECONDS", 1.0)
    with (
        server.login("/bin/bash", "read answer"),
        pytest.raises(EmoExportError, match="is a login script waiting"),
    ):
        clean_remote(server.url)


@pytest.fixture(scope="module")
def shells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's shells, in programs that start them with their own loader and libraries."""
    folder = tmp_path_factory.mktemp("shells")
    root = folder / "root"
    for package in download(folder / "apt", SUITE, SHELLS):
        if package.name.startswith(("lib", *(f"{shell}_" for shell in SHELLS))):
            unpack(package, root)
    path = ":".join(str(root / libraries) for libraries in LIBRARIES)
    loader = root / LIBRARIES[0] / "ld-linux-x86-64.so.2"
    for shell in SHELLS:
        put_program(folder, shell, f'exec {loader} --library-path {path} {root}/bin/{shell} "$@"')
    put_program(folder, "dash", 'exec /bin/sh "$@"')
    (folder / "rbash").symlink_to("/bin/bash")
    return folder


@pytest.mark.parametrize("shell", ["rbash", "dash", *SHELLS])
def test_any_login_shell_will_do(server: SshServer, shells: Path, shell: str) -> None:
    with server.login(str(shells / shell), ""):
        assert clean_remote(server.url) == ([], 0)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("HostName=no-such-host.invalid", "there is no host of this name"),
        ("Port=1", "nothing answers there on ssh's port"),
        ("IdentityFile=/dev/null", "it does not let you in"),
        ("UserKnownHostsFile=/dev/null", "its host key is not known yet"),
        ("UserKnownHostsFile={folder}/changed", "its host key is not the one that is known"),
        ("ProxyCommand=exit 3", "ssh could not open a session there"),
    ],
)
def test_a_connection_that_fails_is_one_sentence_and_what_ssh_said(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, option: str, said: str
) -> None:
    other = (server.folder / "user.pub").read_text("ascii")
    (server.folder / "changed").write_text(f"[127.0.0.1]:{server.port} {other}", "ascii")
    config = (server.folder / "client").read_text("utf-8")
    name, _, value = option.format(folder=server.folder).partition("=")
    first = f"Host *\n    {name} {value}\n"  # ssh takes the first value that it reads
    kept = [line for line in config.splitlines() if name not in line]
    (server.folder / "bad").write_text(first + "\n".join(kept[1:]) + "\n", "utf-8")
    monkeypatch.setenv(COMMAND, f"ssh -F {server.folder}/bad")
    url = "ssh://tester@127.0.0.1" if name == "Port" else server.url
    with pytest.raises(EmoExportError) as refused:
        clean_remote(url)
    sentence, *words = str(refused.value).splitlines()
    assert said in sentence and sentence.startswith(f"{url}: ")
    assert words


def test_without_ssh_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, "no-such-ssh -v")
    with pytest.raises(MissingDependencyError, match=r"no-such-ssh.*apt install openssh-client"):
        clean_remote("ssh://pi")
