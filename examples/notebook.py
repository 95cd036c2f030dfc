# %% [markdown]
# # EMO from Python
#
# The cells run one after the other in VS Code, Spyder or PyCharm, with `jupytext --to ipynb`, or
# all at once: `python examples/notebook.py`. They need `pip install "emo-export[convert,ort]"`.

# %%
"""A checkpoint to GGUF and ONNX, what that cost, text, and experts for one kind of text."""

from pathlib import Path

import numpy as np

import emo_export

CHECKPOINT = Path("examples/emo-nano")
OUT = Path("out/notebook")

# %% What it is: headers alone are read.
checkpoint = emo_export.open_checkpoint(CHECKPOINT)
config = checkpoint.config
print(f"{config.num_hidden_layers} layers, {config.layers[0].num_experts} experts in each,")
print(f"of which a token uses {config.num_experts_per_tok}; vocabulary {config.vocab_size}")

# %% Both targets in one pass over the weights, judged by their engines.
TARGETS = ["gguf:q4_0", "onnx:int4"]
heldout = [CHECKPOINT / "heldout"]
made = emo_export.export(CHECKPOINT, OUT / "all", TARGETS, heldout=heldout, overwrite=True)
for result in made.results:
    row = next(row for row in result.rows if row.against == "original")
    print(f"{result.target}: {result.verdict}, KL {row.measured.kl_mean:.4f} nats to the original")

# %% Text, in pieces as they come.
with emo_export.load(OUT / "all", "gguf:q4_0") as model:
    for piece in model.text("def main(", max_tokens=48, seed=1):
        print(piece, end="", flush=True)
print()

# %% Logits: the most likely tokens after the first three of the vocabulary.
with emo_export.load(OUT / "all", "onnx:int4") as model:
    logits = model.logits([0, 1, 2])  # (T, V)
print("shape", logits.shape, "likeliest", np.argsort(logits[-1])[::-1][:5])

# %% A quarter of the experts: those that Python code needs, and what their loss costs on it.
made = emo_export.export(
    CHECKPOINT,
    OUT / "python",
    ["gguf:q4_0"],
    keep=8,
    calibration=[CHECKPOINT / "calibration" / "python.jsonl"],
    heldout=[CHECKPOINT / "heldout" / "python.jsonl"],
    overwrite=True,
)
print(f"{(OUT / 'python' / 'model-Q4_0.gguf').stat().st_size / 1e6:.1f} MB, passed: {made.passed}")
