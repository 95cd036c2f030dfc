"""The variants of a sweep: the product of what SPEC.toml lists, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.families import FAMILIES, target_maker
from emo_export.families.options import TargetOptions
from emo_export.jobs.options import ExportOptions
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.product import Product
from emo_export.parity.outcome import Label
from emo_export.selection.keep import Keep, Selection
from emo_export.selection.method import Method
from emo_export.spec import Spec
from emo_export.sweep.spec_file import EVERY, EVERY_EXPERT, OWN, SweepOptions, SweepSpec, naming
from emo_export.text.first import sequences_of
from emo_export.text.places import find_texts
from emo_export.text.tokenizer import open_tokenizer, why_no_tokenizer


@dataclass(frozen=True)
class Variant:
    """One folder to make. `domains`: name of a held-out file's text -> domain of the sweep."""

    label: Label
    checkpoint: Path
    options: ExportOptions
    domains: Mapping[str, str]


def variants_of(spec: SweepSpec, checkpoint: Checkpoint) -> tuple[Variant, ...]:
    """All of them, in the order of the spec. Raises EmoExportError for what could not be made."""
    _check_targets(spec, checkpoint)
    _check_texts(spec, checkpoint)
    found = []
    for domain, keep in product(spec.domains, spec.keep):
        others = [one for one in spec.domains if one is not domain and spec.judge == EVERY]
        judged = {one.name: one.heldout for one in (domain, *others)}
        domains = _names(judged)
        for method, target in product(spec.methods if keep else ("",), spec.targets):
            label = _label(domain.name, keep, method, target)
            selection = None
            if keep is not None:
                selection = Selection(keep, Method(method), spec.options.seed, spec.options.rescale)
            options = ExportOptions(
                heldout=tuple(path for places in judged.values() for path in places),
                heldout_tokens=spec.options.heldout_tokens * len(judged),
                calibration=domain.calibration,
                calibration_tokens=spec.options.calibration_tokens,
                seed=spec.options.seed,
                text_field=spec.options.field,
                selection=selection,
                targets=_options_for(target, spec.options),
                device=spec.options.torch_device,
                overwrite=True,
            )
            found.append(Variant(label, checkpoint.path, options, domains))
    return tuple(found)


def _label(domain: str, keep: Keep | None, method: str, target: Spec) -> Label:
    kept, plain = EVERY_EXPERT, EVERY_EXPERT
    if keep is not None:
        kept = plain = str(keep.amount)
        if isinstance(keep.amount, Fraction):
            share = f"{float(100 * keep.amount):g}"
            kept, plain = f"{share}%", f"{share}pct"
    parts = [domain, plain, *([method] if method else []), target.family, target.place]
    return Label("-".join(parts), domain, kept, method, str(target))


def _target_options(options: SweepOptions) -> TargetOptions:
    return TargetOptions(
        options.context,
        options.accuracy_level,
        options.last_logits,
        options.arch,
        options.tensor_type,
        options.block_size,
        options.plain_attention,
    )


def _options_for(target: Spec, options: SweepOptions) -> TargetOptions:
    """Without those that are for other targets, which a single one would refuse."""
    family = FAMILIES[target.family]
    known = family.overriding()
    types = [one for one in options.tensor_type if one.lower().partition("=")[2] in known]
    return family.taken(target, replace(_target_options(options), tensor_types=tuple(types)))


def _check_targets(spec: SweepSpec, checkpoint: Checkpoint) -> None:
    """Every target can be made of the model at every count of experts, and its engine is here."""
    counts: dict[tuple[int, ...], Keep | None] = {}
    matrix = ImportanceMatrix("", 0)  # empty, as a calibration's is at first
    for keep in spec.keep:
        made = Product.whole(checkpoint)
        if keep is not None:
            made = Selection(keep).awaiting(checkpoint)
            kept = tuple(keep.counts(checkpoint.config))
            if kept in counts:
                raise EmoExportError(f"keep: {keep.amount} keeps as many experts as another one")
            counts[kept] = keep
        target_maker(spec.targets, made, _target_options(spec.options), matrix)
    for family in dict.fromkeys(target.family for target in spec.targets):
        FAMILIES[family].need_engine("validating")


def _check_texts(spec: SweepSpec, checkpoint: Checkpoint) -> None:
    """Every file begins with text, and none is chosen for and judged on."""
    encode = open_tokenizer(checkpoint.path, checkpoint.config.vocab_size)
    if encode is None:
        raise EmoExportError(
            f"a sweep needs the checkpoint's tokenizer, and {checkpoint.path} "
            f"{why_no_tokenizer(checkpoint.path)}"
        )
    for domain in spec.domains:
        with naming(f"domains.{domain.name}"):
            chosen, judged = (
                find_texts(places).files for places in (domain.calibration, domain.heldout)
            )
            for file in (*chosen, *judged):
                if not sequences_of([file], encode, 2, 2, spec.options.field):
                    raise EmoExportError(f"{file}: holds less than two tokens of text")
            if both := sorted(set(chosen) & set(judged)):
                raise EmoExportError(
                    f"{both[0]} is in calibration and in heldout: a choice is not judged on the "
                    "text that it was made for"
                )


def _names(judged: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Name of each held-out file's text, as golden.npz will have it -> its domain."""
    from emo_export.reference.probes import MOST_DOMAINS, domain_names

    owners = [
        (file, domain) for domain, places in judged.items() for file in find_texts(places).files
    ]
    names = domain_names([file for file, _ in owners])
    found = dict(zip(names, (domain for _, domain in owners), strict=True))
    if len(judged) > 1 and (len(owners) > MOST_DOMAINS or len(found) < len(owners)):
        raise EmoExportError(
            f'judge = "{EVERY}": takes at most {MOST_DOMAINS} held-out files in all, none of them '
            f'twice, and there are {len(owners)}; join the files of a domain, or judge = "{OWN}"'
        )
    return found
