"""Debian packages for an ordinary user: an apt state of our own, the machine's own mirror.

apt checks the mirror's index against Debian's keys; each package is then held to its pin. A mirror
keeps only the newest version of a package, so after a point release of Debian a pinned one is gone:
then the mirror's is taken, which apt has checked by the signature, and the versions say so.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from urllib.parse import unquote

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.manifest import digest
from emo_export.runtimes.devices.emulated.emulation import Version
from emo_export.runtimes.devices.emulated.fetch import Progress, run, watched
from emo_export.runtimes.devices.emulated.pins import Pin

MIRROR = "EMO_EXPORT_DEBIAN_MIRROR"
KEYRINGS = tuple(
    Path("/usr/share/keyrings") / f"debian-archive-keyring.{suffix}" for suffix in ("gpg", "pgp")
)
KEYRING_REMEDY = "sudo apt-get install debian-archive-keyring"
QEMU_FILE = "usr/bin/qemu-aarch64"
# Debian's packages of trixie lie below usr/ alone; the links are base-files' work.
LINKS = ("bin", "lib", "sbin")

# Hooks of the machine's own apt must not run: they tidy the machine's caches, not ours.
APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear APT::Architectures;
APT::Architecture "{first}";
APT::Architectures {{ {all} }};
APT::Sandbox::User "root";
APT::Default-Release "";
Acquire::Languages "none";
Acquire::Retries "2";
Debug::NoLocking "1";
Dir::Cache "{state}/cache";
Dir::State "{state}/state";
Dir::State::lists "{state}/state/lists";
Dir::State::status "{state}/status";
Dir::Etc::sourcelist "{state}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


@dataclass(frozen=True)
class Fetched:
    """A .deb on disk: `pin` is what it is, `version` says too whether that was asked for."""

    path: Path
    pin: Pin
    version: Version


def refuse_without_apt() -> None:
    """Raise MissingDependencyError where Debian packages can't be fetched and unpacked."""
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        raise MissingDependencyError(
            f"emulated devices are made of Debian packages, and this system has no "
            f"{' and no '.join(missing)}. Give any arm64 root with --rootfs DIR and put "
            "qemu-aarch64 10 or newer on PATH: podman export $(podman create --platform "
            "linux/arm64 docker.io/library/python:3.13-slim) | tar -x -C DIR"
        )


def fetch(packages: Sequence[Pin], suite: str, folder: Path, progress: Progress) -> list[Fetched]:
    """Download packages into `folder` -> one Fetched for each, in order.

    Raises MissingDependencyError without apt or without a mirror to ask, EmoExportError when no
    mirror has the packages or one is not what the index or its pin says.
    """
    refuse_without_apt()
    state = folder / "apt"
    apt = private_apt(state, sorted({package.arch for package in packages} - {"all"}))
    failures = []
    for mirror in mirrors(folder):
        progress.on_stage(f"reading the index of Debian {suite} at {mirror}")
        offers, failure = _ask(apt, state, mirror, packages, suite)
        if not failure:
            return _download(apt, state, offers, packages, progress)
        failures.append(f"{mirror}: {failure}")
    raise EmoExportError(
        f"no mirror in apt's sources gave the index of Debian {suite}. Needed: network access; on "
        f"another system than Debian, {MIRROR} with the address of a Debian mirror and Debian's "
        f"keys ({KEYRING_REMEDY})\n" + "\n".join(failures)
    )


def private_apt(state: Path, arches: Sequence[str]) -> list[str]:
    """Make the folder of an apt of our own -> what calls it."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    quoted = " ".join(f'"{arch}";' for arch in arches)
    conf = APT_CONF.format(state=state, first=arches[0], all=quoted)
    (state / "apt.conf").write_text(conf, "utf-8")
    return ["apt-get", "-c", str(state / "apt.conf")]


def mirrors(folder: Path) -> list[str]:
    """The archives that this machine's apt reads, without the suites.

    Raises MissingDependencyError when it knows none.
    """
    if os.environ.get(MIRROR):
        return [os.environ[MIRROR].rstrip("/")]
    listed = run(["apt-get", "-o", "Debug::NoLocking=1", "--print-uris", "update"], folder, {})
    found = re.findall(r"^'([^']+)/dists/", listed.out, re.MULTILINE)
    if not found:
        raise MissingDependencyError(
            f"apt names no mirror on this machine ({listed.tail(2) or 'it has no sources'}); set "
            f"{MIRROR} to the address of a Debian mirror"
        )
    return list(dict.fromkeys(unquote(uri) for uri in found))


Offers = Mapping[tuple[str, str], Pin]


def _ask(
    apt: list[str],
    state: Path,
    mirror: str,
    packages: Sequence[Pin],
    suite: str,
) -> tuple[Offers, str]:
    """What a mirror has of the packages, or why it has not."""
    arches = ",".join(sorted({package.arch for package in packages} - {"all"}))
    keyring = next((path for path in KEYRINGS if path.is_file()), None)
    options = f"arch={arches} signed-by={keyring}" if keyring else f"arch={arches}"
    (state / "sources.list").write_text(f"deb [{options}] {mirror} {suite} main\n", "utf-8")
    update = run([*apt, "update"], state, {})
    names = [f"{package.name}:{package.arch}" for package in packages]
    asked = run([*apt, "download", "--print-uris", *names], state, {})
    offers = {(offer.name, offer.arch): offer for offer in _offers(asked.out)}
    missing = [name for name in names if tuple(name.split(":")) not in offers]
    if update.code or asked.code or missing:
        # A mirror that can't be reached is a warning to apt, and the packages are then unknown.
        words = [line for line in update.said.splitlines() if line[:2] in ("E:", "W:")]
        return {}, "\n".join(words[:2]) or asked.tail(2) or f"it has no {', '.join(missing)}"
    return offers, ""


def _offers(printed: str) -> list[Pin]:
    """Lines of --print-uris: 'URI' NAME_VERSION_ARCH.deb BYTES SHA256:DIGEST."""
    pattern = r"^'[^']+' ([^_\s]+)_([^_\s]+)_([^_\s]+)\.deb (\d+) SHA256:([0-9a-f]{64})$"
    return [
        Pin(name, unquote(version), sha256, int(nbytes), arch)
        for name, version, arch, nbytes, sha256 in re.findall(pattern, printed, re.MULTILINE)
    ]


def _download(
    apt: list[str], state: Path, offers: Offers, packages: Sequence[Pin], progress: Progress
) -> list[Fetched]:
    progress.on_stage(f"fetching {len(packages)} Debian packages")
    archives = state / "archives"
    archives.mkdir()
    chosen = [(pin, offers[pin.name, pin.arch]) for pin in packages]
    names = [f"{offer.name}:{offer.arch}={offer.version}" for _, offer in chosen]
    done = watched([*apt, "download", *names], archives, {}, archives, progress.on_bytes)
    if done.code:
        raise EmoExportError(f"apt could not fetch Debian packages:\n{done.tail(4)}")
    found = [_checked(archives, pin, offer) for pin, offer in chosen]
    for fetched in found:
        if not fetched.version.pinned:
            progress.on_stage(f"{fetched.pin.name} {fetched.version}")
    return found


def _checked(archives: Path, pin: Pin, offer: Pin) -> Fetched:
    """A downloaded package held to the signed index, and that to the pin."""
    if offer.version == pin.version and offer.digest != pin.digest:
        raise EmoExportError(
            f"{pin.name} {pin.version} of this mirror has the SHA-256 {offer.digest}, pinned is "
            f"{pin.digest}; it is not used. Try another mirror with EMO_EXPORT_DEBIAN_MIRROR"
        )
    escaped = offer.version.replace(":", "%3a")
    path = archives / f"{offer.name}_{escaped}_{offer.arch}.deb"
    found = digest(path) if path.is_file() else "nothing"
    if found != offer.digest:
        raise EmoExportError(
            f"{path.name}: fetched {found}, expected the SHA-256 {offer.digest}; it is not used. "
            "Try again, or another mirror"
        )
    pinned = offer.version == pin.version
    note = "" if pinned else f"not the pinned {pin.version}, signed by Debian"
    return Fetched(path, offer, Version(offer.version, pinned, note))


def unpack_root(packages: Sequence[Fetched], root: Path, scratch: Path) -> None:
    """Unpack packages to a root that qemu can start programs of."""
    root.mkdir()
    for fetched in packages:
        done = run(["dpkg-deb", "-x", str(fetched.path), str(root)], scratch, {})
        if done.code:
            raise EmoExportError(f"{fetched.path.name} can't be unpacked: {done.tail(3)}")
    for name in LINKS:
        if not (root / name).exists() and (root / "usr" / name).is_dir():
            (root / name).symlink_to(f"usr/{name}")


def unpack_qemu(fetched: Fetched, file: Path) -> None:
    """Take the one program out of qemu's package, which emulates forty other CPUs too."""
    command = ["dpkg-deb", "--fsys-tarfile", str(fetched.path)]
    with Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    if content and member.name.removeprefix("./") == QEMU_FILE:
                        with file.open("wb") as out:
                            shutil.copyfileobj(content, out)
                        break
        except tarfile.TarError as error:
            raise EmoExportError(f"{fetched.path.name} can't be unpacked: {error}") from error
        finally:
            process.kill()
    if not file.is_file():
        raise EmoExportError(f"{fetched.path.name} holds no {QEMU_FILE}")
    file.chmod(0o755)
