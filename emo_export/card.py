"""The model card of an exported folder: what it is, what was measured, how to run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from emo_export import __version__
from emo_export.card_running import elsewhere, running
from emo_export.files.recipe_file import RECIPE
from emo_export.files.target_entry import TargetEntry
from emo_export.model.config import EmoConfig
from emo_export.model.product import Product
from emo_export.model.recipes import AUTO
from emo_export.model.source_card import hub_id, licence_of
from emo_export.parity.golden import ORIGINAL
from emo_export.parity.result import FAIL, NOT_ENOUGH, Result, Row
from emo_export.report.markdown import code, plain
from emo_export.report.pruning import STEPS, steps_of
from emo_export.report.recipes import shown_types
from emo_export.report.sentences import interval, not_compared, tokenizer


def model_card(
    product: Product,
    name: str,
    targets: Mapping[str, TargetEntry],
    sizes: Mapping[str, int],
    results: Sequence[Result],
) -> str:
    """Markdown with a YAML head, as the Hugging Face hub reads it."""
    parts = [
        _head(product, targets),
        f"# {plain(name)}",
        _verdict(results),
        running(targets, results, sizes),
        _about(product),
        elsewhere(targets, results),
        _recipes(targets),
        _parity(results),
        _losses(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(product: Product, targets: Mapping[str, TargetEntry]) -> str:
    kinds = sorted({target.spec.family for target in targets.values()})
    base = hub_id(product.path)
    lines = [f"{key}: {value}" for key, value in licence_of(product.path).items()]
    if base is None:
        lines.append("# base_model: owner/name, which a folder on a disk does not tell")
    else:
        lines += [f"base_model: {base}", "base_model_relation: quantized"]
    lines += [f"library_name: {kinds[0]}", "pipeline_tag: text-generation", "tags:"]
    lines += [f"- {tag}" for tag in ("emo", "mixture-of-experts", *kinds)]
    return "\n".join(["---", *lines, "---"])


def _verdict(results: Sequence[Result]) -> str:
    if not results:
        return "**Not validated:** this folder was exported with `--no-validate` or `--no-golden`."
    failed = [result.target for result in results if result.verdict == FAIL]
    untold = [result.target for result in results if result.verdict == NOT_ENOUGH]
    told = []
    if failed:
        told.append(
            f"**PARITY FAILED for {', '.join(failed)}: do not use. The figures are below.**"
        )
    if untold:
        told.append(f"**Not enough text to judge {', '.join(untold)}. The figures are below.**")
    return "\n\n".join(told)


def _about(product: Product) -> str:
    config = product.config
    sparse = [layer for layer in config.layers if not layer.is_dense]
    counts = sorted({layer.num_experts for layer in sparse})
    experts = " or ".join(map(str, counts))
    source = hub_id(product.path) or product.path.name
    text = (
        "## What it is\n\nAn EMO mixture-of-experts language model, exported by "
        f"emo-export {__version__} from the checkpoint {code(source)}: "
        f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {experts} "
        f"experts in a layer{_shared(config)}, of which a token uses "
        f"{config.num_experts_per_tok}, vocabulary {config.vocab_size}."
    )
    pruning = product.pruning
    if pruning:
        text += (
            f" It was pruned from {code(str(pruning.get('original_model')))}: "
            f"{plain(str(pruning.get('prune_keep_k')))} experts were kept in each layer "
            f"(method: {plain(str(pruning.get('pruning_method')))})."
        )
        if pruning.get("routed_scale_per_layer"):
            text += " The routed ones were scaled, so that together they weigh what all weighed."
    return text


def _shared(config: EmoConfig) -> str:
    """The shared experts, which engines count apart; nothing where there are none."""
    counts = {layer.num_shared_experts for layer in config.layers if not layer.is_dense}
    always = any(layer.always_active_experts for layer in config.layers)
    if always or counts == {0} or len(counts) != 1:
        return ""
    return f" ({counts.pop()} of them shared: every token uses it)"


def _recipes(targets: Mapping[str, TargetEntry]) -> str:
    parts = list(next(iter(targets.values())).recipe or {})
    lines = [
        "## Types",
        "",
        "| target | " + " | ".join(part.replace("_", " ") for part in parts) + " |",
        "|---" * (len(parts) + 1) + "|",
    ]
    for spec, target in targets.items():
        lines.append(
            f"| {spec} | " + " | ".join(shown_types((target.recipe or {})[p]) for p in parts) + " |"
        )
    notes = [
        f"- {spec}: rows of `{tensor}` do not fit {wanted} and are {used}."
        for spec, target in targets.items()
        for tensor, (wanted, used) in target.fallbacks.items()
    ]
    if len(notes) > 8:
        notes = [*notes[:8], f"- and {len(notes) - 8} more tensors, listed in manifest.json."]
    chosen = [str(target.spec) for target in targets.values() if target.spec.type == AUTO]
    if chosen:
        notes.append(
            f"- The types of {' and '.join(chosen)} were chosen for a budget: `{RECIPE}` says what "
            f"each costs, and `emo-export export --recipe {RECIPE}` repeats them."
        )
    notes += list(_importance(targets))
    return "\n".join(lines + (["", *notes] if notes else []))


def _importance(targets: Mapping[str, TargetEntry]) -> Iterator[str]:
    """Where the importance of the columns came from; one sentence, for all GGUF targets alike."""
    for target in targets.values():
        made = target.importance
        if made is not None:
            yield (
                f"- Quantised with the importance matrix `{made.file}` of {made.tokens} "
                f"tokens of {plain(made.source)}; llama-quantize can read it too."
            )
            return


def _parity(results: Sequence[Result]) -> str:
    if not results:
        return ""
    lines = [
        "## Measured parity",
        "",
        "`dequantised` compares with the reference implementation on the weights as this format "
        "stores them (it finds bugs), `original` with the float checkpoint (it measures what "
        "quantisation costs). KL in nats per position. `exact` keeps activations in float where "
        "the engine by itself would quantise them. In brackets: the 95% interval.",
        "",
        "| target | compared with | arithmetic | mode | KL mean | top-1 | perplexity ratio | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_parity_line(result.target, row) for result in results for row in result.rows]
    first = results[0]
    lines += [
        f"\n**{result.target}:** {note}."
        for result in results
        for note in (
            *([not_compared(result.not_compared)] if result.not_compared else []),
            *tokenizer(result.tokenizer),
        )
    ]
    lines += [
        "",
        f"Perplexity over {first.heldout_tokens} tokens of {plain(first.heldout_source)}. "
        "`emo-export validate` on this folder repeats these figures.",
    ]
    return "\n".join(lines)


def _losses(results: Sequence[Result]) -> str:
    """What pruning and what bits cost; nothing where the export left no expert out."""
    told = [r for r in results if r.losses is not None and r.losses.pruning]
    if not told:
        return ""
    lines = [
        "## What was lost",
        "",
        "Perplexity on held-out text, times that of the model before, with its standard error: "
        "`pruning` from all experts to those kept, both in float; `bits` from there to the file; "
        "`both` the whole way. The `original` of the tables above is the pruned float model.",
        "",
        "| target | text | " + " | ".join(STEPS) + " |",
        "|---|---|" + "---|" * len(STEPS),
    ]
    lines += [
        f"| {r.target} | " + " | ".join(map(plain, line)) + " |"
        for r in told
        if r.losses is not None
        for line in steps_of(r.losses)
    ]
    return "\n".join(lines)


def _parity_line(target: str, row: Row) -> str:
    ratio = f"{row.perplexity_ratio:.4f}" if row.against == ORIGINAL else ""
    if "perplexity_ratio" in row.intervals:
        ratio += f" ({interval('perplexity_ratio', row)})"
    m = row.measured
    return (
        f"| {target} | {row.against} | {row.arithmetic} | {row.mode} | {m.kl_mean:.1e} | "
        f"{m.top1:.1%} | {ratio} | {row.verdict} |"
    )
