"""The `export` command: its options and help; the work is in cli/export.py."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli import completing, target_names
from emo_export.cli.choosing import FIELD, LOSS, METHOD, RESCALE, SEED, wanted
from emo_export.cli.numbers import TOKENS, Within
from emo_export.cli.output import stdout
from emo_export.cli.progress import with_progress
from emo_export.model.rounding import Rounding
from emo_export.selection.method import Method


@click.command()
@click.argument("checkpoint", shell_complete=completing.folder)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New folder.")
@click.option(
    "--to",
    "specs",
    multiple=True,
    callback=target_names.check,
    shell_complete=completing.targets,
    required=True,
    metavar="SPEC",
    help="gguf:TYPE (f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0, iq4_xs, q3_k_m, iq2_xs, …) "
    "or onnx:TYPE[@GRAPH] (f32, int8, int4, int2). TYPE auto: the best types for --bits, --size, "
    "--read-per-token or --fit. GRAPH says what opens it: qmoe (the default) ONNX "
    "Runtime 1.31, if 1.22 and newer, standard (f32, int8) any engine with opset 23. May be "
    "repeated.",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, allow_dash=True, path_type=Path),
    multiple=True,
    help="Text from which to collect an importance matrix on the way: any text file, .jsonl with "
    '"text", a folder with all text below it, or - for stdin. Better gguf types below 8 bits; '
    "iq2_xxs and iq2_xs need it.",
)
@click.option(
    "--calibration-tokens",
    default=32768,
    show_default=True,
    type=TOKENS,
    help="Of all its files, sampled evenly where there is more; each takes some 11 bytes of memory "
    "per hidden feature (15 with easy-ep and reap): 0.7 GB for 2048. Of each --domain, if any.",
)
@FIELD
@click.option(
    "--keep",
    metavar="K",
    help="Keep so many experts of each layer, as 8, 25% or 1/4: those that --calibration's text "
    "needs. Experts that every token uses always stay, and count. auto: the fewest within --loss.",
)
@LOSS
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="NAME=PLACE",
    help="With --keep: a package of its own for each NAME, in OUTPUT/NAME, with the experts that "
    "its text needs, all in the same pass; PLACE is a file or folder as for --calibration. May be "
    "repeated; a name given twice has several places.",
)
@click.option(
    "--share-trunk",
    is_flag=True,
    help="With --domain: store once, in a file with hard links, what all domains have in common "
    "(everything but routers and routed experts), quantised once with the importance of all their "
    "texts. A GGUF is then two files, which llama.cpp opens by the first.",
)
@METHOD
@RESCALE
@SEED
@click.option(
    "--imatrix",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An importance matrix of llama-imatrix or an earlier export (GGUF), instead.",
)
@click.option(
    "--rounding",
    type=click.Choice([each.value for each in Rounding]),
    help="How weights are put on a type's grid: nearest; weighted by the importance of columns; or "
    "gptq, column by column, where later ones make up for the errors of earlier ones.  [default: "
    "gptq with --calibration, weighted with --imatrix, else nearest]",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="ROLE=TYPE",
    help="Another type for embed, attention, expert (gate and up), expert_down, shared_expert, "
    "dense or head, as in expert_down=q5_k or (onnx) head=int4, attention=int4b32; may be "
    "repeated. It goes to the targets that know the type.",
)
@click.option(
    "--bits",
    type=Within(1, 32),
    help="For gguf:auto and onnx:auto: at most so many bits a weight, scales included. What each "
    "type costs each part and layer is measured on --calibration's text, and the bits are spent "
    "where they save most. The types are stored in recipe.json.",
)
@click.option("--size", metavar="SIZE", help="The same, for a file of at most so much, as 4GB.")
@click.option(
    "--read-per-token",
    metavar="SIZE",
    help="The same, for weights of which a decode step reads at most so much, as 300MB; the less, "
    "the faster.",
)
@click.option(
    "--fit",
    shell_complete=completing.profiles,
    metavar="PROFILE",
    help="The same, for the memory of a device that `plan` knows, as pi5-8gb, at --context.",
)
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For gguf:auto and onnx:auto: the types in the recipe.json of an earlier export.",
)
@click.option(
    "--block-size",
    type=click.Choice(["32", "64", "128"]),
    help="Columns that share a scale in onnx int8, int4 and int2.  [default: 128]",
)
@click.option(
    "--arch",
    type=click.Choice(["deepseek", "glm4moe"]),
    help="llama.cpp's graph (gguf).  [default: deepseek where it is exact]",
)
@click.option(
    "--heldout",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="Text for perplexity: files or folders as for --calibration, of which the first tokens "
    "are taken. Default: the checkpoint's heldout/ folder if it has one, else a built-in text.",
)
@click.option("--heldout-tokens", default=4096, show_default=True, type=TOKENS)
@click.option("--context", type=click.IntRange(2, 1 << 20), help="Positions.  [default: config's]")
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    default="4",
    show_default=True,
    help="ONNX int8/int4: 4 lets activations be int8 (fast), 0 keeps them float, except in the "
    "routed experts of int8, which have no float kernel.",
)
@click.option(
    "--last-logits",
    is_flag=True,
    help="ONNX: logits of the last position unless the input logits_to_keep says otherwise; for "
    "engines that only generate and don't know that input. emo-export itself sets it.",
)
@click.option(
    "--plain-attention",
    is_flag=True,
    help="ONNX @if: attention in standard operators. Copies the KV cache at every token; with f32, "
    "or int4 for every part, the graph then opens in ONNX Runtime 1.21 (Debian 13's).",
)
@click.option("--torch-device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that export made before.")
@click.option("--no-resume", is_flag=True, help="Start anew where an earlier run was interrupted.")
@click.option("--no-validate", is_flag=True, help="Do not run the engines on the result.")
@click.option(
    "--no-golden",
    is_flag=True,
    help="Only convert: no reference is computed, so nothing can be validated later without the "
    "checkpoint.",
)
@click.option("--json", "as_json", is_flag=True, help="Print parity as JSON.")
@with_progress
def export(
    checkpoint: str,
    output: Path,
    specs: tuple[str, ...],
    calibration: tuple[Path, ...],
    calibration_tokens: int,
    text_field: str,
    keep: str | None,
    loss: str | None,
    domains: tuple[str, ...],
    share_trunk: bool,
    method: str,
    rescale: bool,
    seed: int,
    imatrix: Path | None,
    rounding: str | None,
    tensor_types: tuple[str, ...],
    bits: float | None,
    size: str | None,
    read_per_token: str | None,
    fit: str | None,
    recipe: Path | None,
    block_size: str | None,
    arch: str | None,
    heldout: tuple[Path, ...],
    heldout_tokens: int,
    context: int | None,
    accuracy_level: str,
    last_logits: bool,
    plain_attention: bool,
    torch_device: str,
    overwrite: bool,
    no_resume: bool,
    no_validate: bool,
    no_golden: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint to every target in one pass.

    CHECKPOINT is a folder or a Hugging Face id (owner/name, owner/name@revision).

    \b
    Example:
        emo-export export examples/emo-nano -o out --to gguf:q4_0 --to onnx:int4

    \b
    Best quality for its size, with importance from text like that it will see:
        emo-export export examples/emo-nano -o out --to gguf:q4_k_m \\
            --calibration examples/emo-nano/calibration

    \b
    The types that cost least where a token reads at most 2.1 MB of weights:
        emo-export export examples/emo-nano -o out --to onnx:auto \\
            --read-per-token 2.1MB --calibration examples/emo-nano/calibration

    \b
    A quarter of the experts, chosen for C code:
        emo-export export examples/emo-nano -o out --to onnx:int4 \\
            --keep 25% --calibration examples/emo-nano/calibration/c.jsonl

    \b
    Two such packages, out/c and out/python, in one pass:
        emo-export export examples/emo-nano -o out --to onnx:int4 --keep 8 \\
            --domain c=examples/emo-nano/calibration/c.jsonl \\
            --domain python=examples/emo-nano/calibration/python.jsonl
    """
    from emo_export.cli.export import budget_of, domain_places, run_export
    from emo_export.families.options import TargetOptions
    from emo_export.jobs.options import ExportOptions

    if keep is None and loss is not None:
        raise click.UsageError("--loss says what --keep auto may cost")
    selection = None if keep is None else wanted(keep, loss, Method(method), seed, rescale)
    options = ExportOptions(
        heldout=heldout,
        heldout_tokens=heldout_tokens,
        calibration=calibration,
        domains=domain_places(domains),
        calibration_tokens=calibration_tokens,
        seed=seed,
        text_field=text_field,
        selection=selection,
        imatrix=imatrix,
        budget=budget_of(bits, size, read_per_token, fit),
        recipe=recipe,
        rounding=None if rounding is None else Rounding(rounding),
        targets=TargetOptions(
            context,
            int(accuracy_level),
            last_logits,
            arch,
            tensor_types,
            None if block_size is None else int(block_size),
            plain_attention,
            share_trunk,
        ),
        device=torch_device,
        overwrite=overwrite,
        resume=not no_resume,
        golden=not no_golden,
        validate=not no_validate,
    )
    run_export(checkpoint, output, specs, options, stdout(), as_json)
