"""The model card of an exported folder: what it is, what was measured, how to run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emo_export import __version__
from emo_export.card_running import running
from emo_export.model.config import EmoConfig
from emo_export.model.product import Product
from emo_export.parity.golden import ORIGINAL
from emo_export.parity.judge import Row, TargetReport


def model_card(
    product: Product,
    name: str,
    targets: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
    reports: Sequence[TargetReport],
) -> str:
    """Markdown with a YAML head, as the Hugging Face hub reads it."""
    parts = [
        _head(targets),
        f"# {name}",
        _verdict(reports),
        _about(product),
        _files(targets, sizes),
        _recipes(targets),
        _parity(reports),
        running(targets, reports, sizes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(targets: Mapping[str, Mapping[str, Any]]) -> str:
    kinds = sorted({spec.split(":")[0] for spec in targets})
    tags = "\n".join(f"- {tag}" for tag in ("emo", "mixture-of-experts", *kinds))
    return f"---\npipeline_tag: text-generation\ntags:\n{tags}\n---"


def _verdict(reports: Sequence[TargetReport]) -> str:
    if not reports:
        return "**Not validated:** this folder was exported with `--no-validate` or `--no-golden`."
    failed = [report.target for report in reports if not report.passed]
    if failed:
        return f"**PARITY FAILED for {', '.join(failed)}: do not use. The figures are below.**"
    return ""


def _about(product: Product) -> str:
    config = product.config
    sparse = [layer for layer in config.layers if not layer.is_dense]
    counts = sorted({layer.num_experts for layer in sparse})
    experts = " or ".join(map(str, counts))
    text = (
        f"An EMO mixture-of-experts language model, exported by emo-export {__version__} from the "
        f"checkpoint `{product.path.name}`: {config.num_hidden_layers} layers, hidden size "
        f"{config.hidden_size}, {experts} experts in a layer{_shared(config)}, of which a token "
        f"uses {config.num_experts_per_tok}, vocabulary {config.vocab_size}."
    )
    pruning = product.pruning
    if pruning:
        text += (
            f" It was pruned from `{pruning.get('original_model')}`: "
            f"{pruning.get('prune_keep_k')} experts were kept in each layer "
            f"(method: {pruning.get('pruning_method')})."
        )
    return text


def _shared(config: EmoConfig) -> str:
    """The shared experts, which engines count apart; nothing where there are none."""
    counts = {layer.num_shared_experts for layer in config.layers if not layer.is_dense}
    always = any(layer.always_active_experts for layer in config.layers)
    if always or counts == {0} or len(counts) != 1:
        return ""
    return f" ({counts.pop()} of them shared: every token uses it)"


def _files(targets: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> str:
    lines = ["## Files", "", "| target | path | size |", "|---|---|---|"]
    lines += [
        f"| {spec} | `{target['path']}` | {sizes[spec] / 1e6:.1f} MB |"
        for spec, target in targets.items()
    ]
    lines += ["", "manifest.json lists every file with its digest."]
    return "\n".join(lines)


def _recipes(targets: Mapping[str, Mapping[str, Any]]) -> str:
    parts = list(next(iter(targets.values()))["recipe"])
    lines = [
        "## Types",
        "",
        "| target | " + " | ".join(part.replace("_", " ") for part in parts) + " |",
        "|---" * (len(parts) + 1) + "|",
    ]
    for spec, target in targets.items():
        lines.append(f"| {spec} | " + " | ".join(target["recipe"][p] for p in parts) + " |")
    notes = [
        f"- {spec}: rows of `{tensor}` do not fit {wanted} and are {used}."
        for spec, target in targets.items()
        for tensor, (wanted, used) in target["fallbacks"].items()
    ]
    if len(notes) > 8:
        notes = [*notes[:8], f"- and {len(notes) - 8} more tensors, listed in manifest.json."]
    notes += list(_importance(targets))
    return "\n".join(lines + (["", *notes] if notes else []))


def _importance(targets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Where the importance of the columns came from; one sentence, for all GGUF targets alike."""
    for target in targets.values():
        if "importance" in target:
            made = target["importance"]
            yield (
                f"- Quantised with the importance matrix `{made['file']}` of {made['tokens']} "
                f"tokens of {made['source']}; llama-quantize can read it too."
            )
            return


def _parity(reports: Sequence[TargetReport]) -> str:
    if not reports:
        return ""
    lines = [
        "## Measured parity",
        "",
        "`dequantised` compares with the reference implementation on the weights as this format "
        "stores them (it finds bugs), `original` with the float checkpoint (it measures what "
        "quantisation costs). KL in nats per position. `exact` keeps activations in float where "
        "the engine by itself would quantise them.",
        "",
        "| target | compared with | arithmetic | mode | KL mean | top-1 | perplexity ratio | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_parity_line(row) for report in reports for row in report.rows]
    first = reports[0]
    lines += [
        f"\n**{report.target}:** {note}."
        for report in reports
        for note in (*report.notes, *report.tokenizer_failures)
    ]
    lines += [
        "",
        f"Perplexity over {first.heldout_tokens} tokens of {first.heldout_source}. "
        "`emo-export validate` on this folder repeats these figures.",
    ]
    return "\n".join(lines)


def _parity_line(row: Row) -> str:
    ratio = f"{row.perplexity_ratio:.4f}" if row.against == ORIGINAL else ""
    m = row.measured
    return (
        f"| {row.target} | {row.against} | {row.arithmetic} | {row.mode} | {m.kl_mean:.1e} | "
        f"{m.top1:.1%} | {ratio} | {'pass' if row.passed else 'FAIL'} |"
    )
