#!/bin/sh
# A small model for your own text, in minutes: the experts that it needs, and their importance for
# its quantisation, are found in one pass over the weights.
#
#   sh examples/your_text.sh [CHECKPOINT [TEXT [KEEP [OUT]]]]
#
# TEXT is a file, a folder of files, or - for stdin; a few thousand words do. What it costs is told
# on held-out text: give some of yours with --heldout in place of the general sample.
set -eu
nano=$(dirname "$0")/emo-nano
checkpoint=${1:-$nano}
text=${2:-$nano/calibration/python.jsonl}
keep=${3:-8}
out=${4:-out/your-text}
emo=${EMO_EXPORT:-emo-export}

"$emo" plan "$checkpoint" --keep all --keep "$keep" --to gguf:q4_k_m
"$emo" export "$checkpoint" -o "$out" --to gguf:q4_k_m --keep "$keep" --calibration "$text" --overwrite
"$emo" run "$out" "def main(" -n 64
