"""How to run an exported folder: the card's commands, and a Modelfile for Ollama.

Source: llama.cpp `tools/completion`, docs.ollama.com/modelfile, lmstudio.ai/docs/cli (import).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath

from emo_export.files.target_entry import TargetEntry
from emo_export.parity.golden import ORIGINAL
from emo_export.parity.result import Result
from emo_export.report.pruning import times
from emo_export.runtimes.families import LIGHT
from emo_export.spec import GGUF, ONNX

Targets = Mapping[str, TargetEntry]

GRAPHS = {
    "deepseek": "whose graph computes EMO exactly",
    "glm4moe": "whose graph computes this model exactly, with biases that steer the selection",
}

ONNX_GRAPHS = {
    "qmoe": "its `MoE` and `QMoE` operators gather the chosen experts",
    "if": "one branch for each expert around its matrix operators",
    "standard": "no operator but ONNX's own, of opset 23: other engines may open it too",
}

GENAI = """\
import onnxruntime_genai as og

model = og.Model({folder!r})
tokenizer = og.Tokenizer(model)
prompt = tokenizer.encode("The")
params = og.GeneratorParams(model)
params.set_search_options(max_length=len(prompt) + 64)
generator = og.Generator(model, params)
generator.append_tokens(prompt)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
"""


SHARED = """\
`model.onnx.trunk.data` is one file with a name in the folder of each domain (hard links). ONNX
Runtime opens it as any other; the `onnx` Python package refuses weights in a file of several names.
A copy of this folder, made with `cp -r`, is whole and has files of its own."""


def modelfile_name(path: str) -> str:
    """model-Q4_K_M.gguf -> model-Q4_K_M.Modelfile."""
    return f"{PurePath(path).stem}.Modelfile"


def modelfile(path: str, context: int, has_chat_template: bool) -> str:
    """The text of a Modelfile beside a GGUF file.

    Without a template Ollama would guess one, and a base model would read chat marks that it has
    never seen.
    """
    lines = [f"FROM ./{path}", f"PARAMETER num_ctx {context}", "PARAMETER temperature 0.7"]
    if not has_chat_template:
        lines.append('TEMPLATE "{{ .Prompt }}"')
    return "\n".join(lines) + "\n"


def running(targets: Targets, results: Sequence[Result], sizes: Mapping[str, int]) -> str:
    """What a reader came for: which file to take, and what runs it."""
    extras = dict.fromkeys(LIGHT[target.spec.family].extra for target in targets.values())
    first = next(iter(targets.values()))
    lines = [
        f'pip install "emo-export[{",".join(extras)}]"',
        f"emo-export run {shlex.quote(first.path)} 'The' -n 64",
    ]
    others = f", or another of the table in place of `{first.path}`" if len(targets) > 1 else ""
    return (
        f"## Run it\n\nFrom this folder{others}; the text that follows is streamed:\n\n"
        f"{_block(lines)}\n\n{_choice(targets, results, sizes)}"
    )


def elsewhere(targets: Targets, results: Sequence[Result]) -> str:
    """The card's sections on other programs."""
    parts = ["## Other programs"]
    by_family: dict[str, dict[str, TargetEntry]] = {family: {} for family in SECTIONS}
    for name, target in targets.items():
        by_family[target.spec.family][name] = target
    for family, ours in by_family.items():
        if ours:
            parts += SECTIONS[family](ours)
    parts.append(
        "`manifest.json` lists every file with its digest (`emo-export verify`)."
        + (" `golden.npz` is only needed to validate: a device needs no copy." if results else "")
    )
    return "\n\n".join(parts)


def _gguf(ggufs: Targets) -> list[str]:
    return [_llama_cpp(ggufs), _apps(ggufs)]


def _onnx(folders: Targets) -> list[str]:
    lines = [
        f"- `{target.path}`: ONNX Runtime {target.onnxruntime} or newer "
        f"({ONNX_GRAPHS[target.spec.graph]})."
        for target in folders.values()
    ]
    needs = "\n".join(lines)
    text = (
        f"### ONNX Runtime\n\n{needs}\n\nEach graph takes `input_ids` and `attention_mask` (int64) "
        "and `past_key_values.N.key|value` (float32, past length 0 at first), and returns `logits` "
        "and `present.N.key|value`. The optional input `logits_to_keep` (int64, one number) "
        f"says of how many last positions, 0 meaning all{_default(folders)}.\n\n"
        "Rows of a batch may be padded on the left or on the right, with 0 in `attention_mask`; "
        "positions follow from it. Beyond the context a graph fails."
    )
    genai = [target.path for target in folders.values() if target.no_genai == ""]
    shared = [SHARED] if any(target.trunk is not None for target in folders.values()) else []
    return [text, *shared, *([_genai(genai[0])] if genai else [])]


def _default(folders: Targets) -> str:
    """What the graphs do when the input is left out."""
    last = any(target.logits_to_keep for target in folders.values())
    return "; left out, it is 1 here" if last else ", as when it is left out"


def _genai(folder: str) -> str:
    """A few lines of Python that write text; tests/converters/onnx/test_genai_use.py runs them."""
    code = GENAI.format(folder=folder)
    return (
        "### onnxruntime-genai\n\nIt opens the folder of an ONNX target as it is, with its own "
        f"tokenizer (`pip install 'onnxruntime-genai>=0.18,<0.19'`):\n\n```python\n{code}```"
    )


def _block(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(["```sh", *lines, "```"])


def _choice(targets: Targets, results: Sequence[Result], sizes: Mapping[str, int]) -> str:
    """Sizes and measured loss side by side, for choosing."""
    head = ["take", "for", "size", "KL to the original", "top-1", "perplexity ratio"]
    rows = {
        result.target: row for result in results for row in result.rows if row.against == ORIGINAL
    }
    # Of all held-out text, the way from all experts; nothing where none was left out.
    pruned = {r.target: r.losses.both[-1] for r in results if r.losses and r.losses.both}
    lines = []
    for spec, target in targets.items():
        cells = [f"`{target.path}`", _for(target), f"{sizes[spec] / 1e6:.1f} MB"]
        if spec in rows:
            measured = rows[spec].measured
            cells += [f"{measured.kl_mean:.4f}", f"{measured.top1:.1%}"]
            cells.append(f"{rows[spec].perplexity_ratio:.4f}")
        elif rows:
            cells += ["not judged", "", ""]
        if pruned:
            cells.append(times(pruned[spec]) if spec in pruned else "")
        lines.append(f"| {' | '.join(cells)} |")
    head = [*(head if rows else head[:3]), *(["against all experts"] if pruned else [])]
    told = (
        "\n\nOf those that fit into memory beside the context, the largest says most like the "
        "original: lower KL and a ratio nearer to 1 are better; top-1 is how often the most likely "
        "token is the original's, near ties of the router apart, and good to a point or two."
    )
    if pruned:
        told += (
            " The original is here the float model with the experts that are kept; the last column "
            "is perplexity on held-out text against all experts in float."
        )
    table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]
    return "\n".join(table) + (told if rows else "")


def _for(target: TargetEntry) -> str:
    if target.spec.family == GGUF:
        return "llama.cpp, LM Studio" if target.trunk else "llama.cpp, Ollama, LM Studio"
    more = {"if": ", browsers, Android", "standard": ", engines with opset 23"}
    return f"ONNX Runtime {target.onnxruntime} or newer{more.get(target.spec.graph, '')}"


def _llama_cpp(ggufs: Targets) -> str:
    lines = []
    for target in ggufs.values():
        path = shlex.quote(target.path)
        lines.append(f"llama-completion -m {path} -p 'The' -n 64 -no-cnv")
    first = next(iter(ggufs.values()))
    lines += [
        f"llama-server -m {shlex.quote(first.path)} --port 8080 &",
        """curl localhost:8080/completion -d '{"prompt": "The", "n_predict": 64}'""",
    ]
    graph = first.arch or "deepseek"
    about = (
        f"These files have llama.cpp's architecture `{graph}`, {GRAPHS[graph]}: stock llama.cpp "
        "opens them."
    )
    return f"### llama.cpp\n\n{about}\n\n{_block(lines)}"


def _apps(ggufs: Targets) -> str:
    ollama, studio, merged = [], [], []
    for target in ggufs.values():
        path = target.path
        if target.trunk is not None:
            path = f"model-{target.spec.type.upper()}.gguf"
            merged.append(f"llama-gguf-split --merge {shlex.quote(target.path)} {path}")
            studio.append(f"lms import --copy {path}")
            continue
        name = re.sub(r"[^a-z0-9._-]", "-", f"emo-{target.spec.type}")
        ollama.append(f"ollama create {name} -f {shlex.quote(modelfile_name(path))}")
        studio.append(f"lms import --copy {shlex.quote(path)}")
    if merged:
        return (
            "### Ollama and LM Studio\n\nThey import a model of one file; llama.cpp's own tool "
            f"joins the two, and the result shares nothing any more:\n\n{_block(merged)}\n\n"
            f"LM Studio then takes it:\n\n{_block(studio)}"
        )
    ollama.append(f"ollama run {name} 'The'")
    return (
        f"### Ollama\n\nA Modelfile stands beside each file.\n\n{_block(ollama)}\n\n"
        f"### LM Studio\n\nIt lists the model under My Models afterwards.\n\n{_block(studio)}\n\n"
        "The commands of Ollama and LM Studio follow their documentation; emo-export has run "
        "llama.cpp alone."
    )


SECTIONS: Mapping[str, Callable[[Targets], list[str]]] = {
    GGUF: _gguf,
    ONNX: _onnx,
}
"""What the card says of each family, in this order."""
