"""Generate with an exported ONNX folder through Hugging Face optimum, several prompts at once.

python examples/optimum_generate.py out/onnx-int4 "def main(" "In the beginning"

Needs optimum-onnx[onnxruntime]==0.1.0 and torch, in an environment of their own: its transformers
is older than what emo_export's `convert` extra takes. emo_export itself is not needed.
"""

from __future__ import annotations

import sys

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer


def main() -> None:
    """Print 48 greedy tokens after each prompt."""
    if len(sys.argv) < 3:
        sys.exit("usage: python examples/optimum_generate.py FOLDER PROMPT...")
    folder, prompts = sys.argv[1], sys.argv[2:]
    # Padding stands on the left, so that every prompt ends where its continuation begins.
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # any token: the attention mask hides it
    model = ORTModelForCausalLM.from_pretrained(folder)
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    found = model.generate(**batch, max_new_tokens=48, do_sample=False)
    for text in tokenizer.batch_decode(found, skip_special_tokens=True):
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
