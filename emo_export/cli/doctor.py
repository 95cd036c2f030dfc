"""The work of `doctor`: what it prints."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console


def run_doctor(as_json: bool, out: Console) -> None:
    """Print what this machine has and what is missing for what."""
    from emo_export.bench.device_list import device_check
    from emo_export.bench.doctor import examine
    from emo_export.runtimes.llama.abi import load_library

    def llama_info() -> str:
        return str(load_library().api.llama_print_system_info().decode())

    checks = [*examine(llama_info), device_check()]
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
        return
    for check in sorted(checks, key=lambda check: not check.name.startswith("ready")):
        out.print(f"{'ok' if check.ok else 'no':3} {check.name}: {check.found}", markup=False)
        if not check.ok:
            out.print(f"      for {check.needed_for}: {check.remedy}", markup=False)
