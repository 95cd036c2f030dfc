"""What commands that choose experts ask alike: options, and what they mean together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from emo_export.selection.method import Method

if TYPE_CHECKING:
    from emo_export.selection.auto import Auto
    from emo_export.selection.keep import Selection

METHOD = click.option(
    "--method",
    type=click.Choice([method.value for method in Method]),
    default=Method.ROUTER.value,
    show_default=True,
    help="What experts are ranked by: router (mean router probability), easy-ep (router weight x "
    "norm of the output x how much the block turns the token), reap (router weight x norm, "
    "over the tokens that chose it), or random.",
)
RESCALE = click.option(
    "--rescale",
    is_flag=True,
    help="Scale the routed experts of each layer by what the router gave them before experts were "
    "left out over what it gives them now. Helps where few are kept.",
)
SEED = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Of all that is drawn."
)
FIELD = click.option(
    "--field",
    "text_field",
    default="text",
    show_default=True,
    metavar="NAME",
    help="Of each line of .jsonl that --calibration or --heldout names.",
)
LOSS = click.option(
    "--loss",
    metavar="PERCENT",
    help="How much perplexity --keep auto may cost.  [default: 2%]",
)


def wanted(
    keep: str, loss: str | None, method: Method, seed: int, rescale: bool
) -> Selection | Auto:
    """What --keep and --loss ask for. Raises a UsageError for what they can't."""
    from emo_export.selection.auto import Auto
    from emo_export.selection.keep import Keep, Selection

    if keep == "auto":
        return Auto(_share(loss or "2%"), method, seed, rescale)
    if loss is not None:
        raise click.UsageError("--loss says what --keep auto may cost")
    return Selection(Keep.parse(keep), method, seed, rescale)


def _share(text: str) -> float:
    """`2%` or `0.02` as a number."""
    number, whole = text.removesuffix("%"), text.endswith("%")
    try:
        found = float(number) / (100 if whole else 1)
    except ValueError:
        found = -1.0
    if not 0 < found < 100:
        raise click.UsageError(f"--loss {text}: expected a share, as 2% or 0.02")
    return found
