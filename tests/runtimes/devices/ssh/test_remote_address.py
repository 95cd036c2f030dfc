"""ssh://…: what is taken, and what never reaches a command line."""

from __future__ import annotations

import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.ssh.address import parse_address


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("ssh://pi", ["--", "pi"]),
        ("ssh://me@pi.local:2222", ["-l", "me", "-p", "2222", "--", "pi.local"]),
        ("ssh://me@[fe80::1%eth0]:22", ["-l", "me", "-p", "22", "--", "fe80::1%eth0"]),
        ("ssh://[::1]", ["--", "::1"]),
        ("ssh://192.168.1.7", ["--", "192.168.1.7"]),
        ("ssh://first.last@my_pi", ["-l", "first.last", "--", "my_pi"]),
    ],
)
def test_an_address_becomes_arguments_and_itself_again(url: str, arguments: list[str]) -> None:
    address = parse_address(url)
    assert address.arguments() == arguments
    assert str(address) == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ssh:pi", "expected ssh://"),
        ("http://pi", "expected ssh://"),
        ("ssh://", "host ''"),
        ("ssh://-oProxyCommand=touch", "host '-oProxyCommand=touch'"),
        ("ssh://-oProxyCommand=x@pi", "user '-oProxyCommand=x'"),
        ("ssh://@pi", "user ''"),
        ("ssh://me@-v", "host '-v'"),
        ("ssh://pi/home", "host 'pi/home'"),
        ("ssh://pi;reboot", "host 'pi;reboot'"),
        ("ssh://pi host", "host 'pi host'"),
        ("ssh://pi\n-v", "is not a name"),
        ("ssh://pi:", "port ''"),
        ("ssh://pi:ssh", "port 'ssh'"),
        ("ssh://pi:0", "not within 1 to 65535"),
        ("ssh://pi:65536", "not within 1 to 65535"),
        ("ssh://pi:٢٢", "is not a number"),
        ("ssh://fe80::1", "in \\[brackets\\]"),
        ("ssh://[::1", "host '\\['"),
        ("ssh://[::1]22", "port '22'"),
    ],
)
def test_anything_else_is_refused_by_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(EmoExportError, match=said):
        parse_address(url)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(EmoExportError, match="password") as refused:
        parse_address("ssh://me:hunter2@pi")
    assert "hunter2" not in str(refused.value)
