#!/bin/sh
# The main job on the model that the repository carries: export it, judge both results with their
# engines, check the files, and let each write a paragraph.
set -eu
cd "$(dirname "$0")/.."
emo() { .venv/bin/emo-export "$@"; }

emo export examples/emo-nano -o out/emo-nano --to gguf:q4_0 --to onnx:int4 --overwrite
emo verify out/emo-nano
for target in gguf:q4_0 onnx:int4; do
    printf '\n%s continues "In the beginning":\n' "$target"
    emo run out/emo-nano --target "$target" -p "In the beginning" -n 80
done
printf '\nLook at out/emo-nano/README.md; repeat the check: .venv/bin/emo-export validate out/emo-nano\n'
