#!/bin/sh
# The main job on the model that the repository carries: export, validate, and a paragraph from each.
set -eu
cd "$(dirname "$0")/.."
emo() { .venv/bin/emo-export "$@"; }

emo export examples/emo-nano -o out/emo-nano --to gguf:q4_0 --to onnx:int4 --overwrite --no-validate
emo validate out/emo-nano
for target in gguf:q4_0 onnx:int4; do
    printf '\n%s continues "In the beginning":\n' "$target"
    emo run out/emo-nano --target "$target" -p "In the beginning" -n 80
done
