"""Fetching by Hugging Face id: the real client in a process of its own against a local server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.hub import locate
from tests.kit.hub import SHA, Hub
from tests.kit.paths import GOLDEN, NANO, ROOT

REPO = "someone/emo-tiny"
SHARD_2 = "model-00002-of-00003.safetensors"

# What a repository also offers, none of it needed: code, pickles, other layouts, copies.
UNNEEDED = {
    "modeling_emo.py": b"raise SystemExit('remote code ran')",
    "configuration_emo.py": b"raise SystemExit('remote code ran')",
    "pytorch_model.bin": b"\x80\x02.",
    "training_args.bin": b"\x80\x02.",
    ".gitattributes": b"",
    "original/model.safetensors": b"\0" * 64,
    "original/chat_template.jinja": b"{{ other }}",
    "additional_chat_templates/readme.txt": b"none",
    "checkpoint-100/config.json": b"{}",
}

TEMPLATES = {
    "README.md": b"---\nlicense: mit\n---\n# tiny",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
}

LOCATE = """
import sys
from emo_export.model.hub import locate
from emo_export.errors import EmoExportError
try:
    print(locate(sys.argv[1], weights=len(sys.argv) == 2))
except EmoExportError as error:
    sys.exit(f"REFUSED {error}")
"""


def _files(folder: Path) -> dict[str, bytes]:
    names = [f for f in folder.iterdir() if f.suffix in (".json", ".safetensors")]
    return {file.name: file.read_bytes() for file in names}


def _locate(source: str, endpoint: str, home: Path, *more: str) -> subprocess.CompletedProcess[str]:
    # HF_ENDPOINT is read when the client is imported, so it needs a process of its own.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", LOCATE, source, *more]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=env, cwd=ROOT, check=False
    )


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("sharded", "@main"),
        pytest.param("base", "", marks=pytest.mark.slow),
        pytest.param("pruned", f"@{SHA}", marks=pytest.mark.slow),
    ],
)
def test_only_the_needed_files_are_fetched(name: str, revision: str, tmp_path: Path) -> None:
    files = _files(GOLDEN / name) | TEMPLATES
    with Hub(REPO, UNNEEDED | files) as hub:
        done = _locate(REPO + revision, hub.endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == set(files)
    found = Path(done.stdout.strip())
    fetched = [file for file in found.rglob("*") if file.is_file()]
    assert {f.relative_to(found).as_posix(): f.read_bytes() for f in fetched} == files
    opened, truth = Checkpoint.open(found), Checkpoint.open(GOLDEN / name)
    assert opened.config == truth.config
    assert set(opened) == set(truth)
    assert done.stderr == ""


def test_a_plan_fetches_no_weights(tmp_path: Path) -> None:
    files = _files(GOLDEN / "sharded")
    with Hub(REPO, files) as hub:
        done = _locate(REPO, hub.endpoint, tmp_path, "without weights")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {name for name in files if not name.endswith(".safetensors")}


@pytest.mark.slow
def test_a_second_run_fetches_nothing(tmp_path: Path) -> None:
    with Hub(REPO, _files(GOLDEN / "base")) as hub:
        first = _locate(REPO, hub.endpoint, tmp_path)
        hub.asked.clear()
        second = _locate(REPO, hub.endpoint, tmp_path)
        assert not [path for method, path in hub.asked if method == "GET" and "/resolve/" in path]
    assert first.stdout == second.stdout != ""
    # The server is gone now: what was fetched must still be found.
    third = _locate(REPO, hub.endpoint, tmp_path)
    assert third.stdout == first.stdout, third.stderr


def test_a_transfer_that_breaks_off_once_goes_on(tmp_path: Path) -> None:
    # The client writes in pieces of 10 MiB, so only a larger file can be kept in part.
    with Hub(REPO, _files(NANO)) as hub:
        hub.cuts = {"model.safetensors": 1}
        done = _locate(REPO, hub.endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.ranges == [f"model.safetensors bytes={20 << 20}-"]
    found = Path(done.stdout.strip()) / "model.safetensors"
    assert found.read_bytes() == (NANO / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_fetch_that_fails_keeps_the_whole_files(tmp_path: Path) -> None:
    with Hub(REPO, _files(GOLDEN / "sharded")) as hub:
        hub.cuts = {SHARD_2: 1000}
        broken = _locate(REPO, hub.endpoint, tmp_path)
        assert broken.returncode == 1
        assert f"REFUSED {REPO}" in broken.stderr, broken.stderr
        hub.cuts.clear()
        hub.asked.clear()
        done = _locate(REPO, hub.endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    again = {path.rpartition("/")[2] for method, path in hub.asked if method == "GET"}
    assert {name for name in again if name.endswith(".safetensors")} == {SHARD_2}
    Checkpoint.open(Path(done.stdout.strip()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "someone/unknown",
        f"{REPO}@no-such-branch",
        "-bad/name",
        "bad--double/name",
        "bad/name..",
    ],
)
def test_an_unknown_repository_is_refused(source: str, tmp_path: Path) -> None:
    with Hub(REPO, _files(GOLDEN / "base")) as hub:
        done = _locate(source, hub.endpoint, tmp_path)
    assert done.returncode == 1
    assert f"REFUSED {source}" in done.stderr, done.stderr
    assert hub.fetched() == set()


def test_a_hub_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    with Hub(REPO, {}) as hub:
        endpoint = hub.endpoint
    done = _locate(REPO, endpoint, tmp_path)
    assert f"REFUSED {REPO}" in done.stderr, done.stderr


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named like an id wins over the hub, and nothing is asked of any network."""
    folder = tmp_path / "someone" / "emo-tiny"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate(REPO).samefile(folder)


@pytest.mark.parametrize("source", ["nowhere", "./a/b/c", "/no/such/folder"])
def test_a_path_that_is_not_there_is_refused_when_opened(source: str) -> None:
    with pytest.raises(EmoExportError, match="is not a folder"):
        Checkpoint.open(locate(source))
