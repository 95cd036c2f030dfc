"""The options of `serve`, and its help."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli import completing
from emo_export.cli.numbers import SECONDS
from emo_export.cli.validate_command import THREADS
from emo_export.files.kv_cache import KV_CACHES


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="SPEC",
    shell_complete=completing.package_targets,
    help="Of a folder.  [default: the first that can run]",
)
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="NAME",
    help="Of a folder that export --domain made.  [repeatable; default: all]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: a free one."
)
@click.option(
    "--api-key",
    envvar="EMO_EXPORT_API_KEY",
    show_envvar=True,
    help="What clients must send; needed beyond loopback. Others can read a command line: rather "
    "set the variable.",
)
@click.option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin ask, as http://localhost:3000.  [repeatable]",
)
@click.option("--threads", type=click.IntRange(1), help=THREADS)
@click.option("--context", type=click.IntRange(2), help="Tokens.  [default: the model's own]")
@click.option("--kv-cache", type=click.Choice(KV_CACHES), help="As of run.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    help="Answers at once, each with a KV cache of its own.  [default: 4 for GGUF, 1 for ONNX]",
)
@click.option(
    "--queue",
    default=16,
    show_default=True,
    type=click.IntRange(0, 10_000),
    help="Requests that may wait for their turn; more get 503.",
)
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    type=SECONDS,
    metavar="SECONDS",
    help="For an answer, its wait included.",
)
@click.option("--json", "as_json", is_flag=True, help="When ready, print a line of JSON.")
def serve(
    path: Path,
    target: str | None,
    domains: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    cors: tuple[str, ...],
    threads: int | None,
    context: int | None,
    kv_cache: str | None,
    parallel: int | None,
    queue: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Answer requests by HTTP as OpenAI's API does.

    PATH is a .gguf file, an ONNX folder or a folder that export made. /v1/completions writes a
    prompt on, /v1/chat/completions converses where the model has a chat template; /v1/models names
    what there is, /health says that it runs. Each domain is a model of its name. Ctrl-C or SIGTERM
    ends it, after answers that are under way have had some seconds.

    \b
    Example:
        emo-export serve out --port 8080
        curl http://127.0.0.1:8080/v1/completions \\
            -H 'Content-Type: application/json' -d '{"prompt": "def main("}'
    """
    from emo_export.cli.serve import Address, run_service
    from emo_export.service.plans import Settings

    settings = Settings(target, domains, threads, context, kv_cache, parallel, queue)
    run_service(path, settings, Address(host, port, api_key, cors, timeout), as_json)
