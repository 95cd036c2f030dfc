#!/bin/sh
# An OpenAI-compatible endpoint by llama.cpp's own server, and one question to it.
#
#   sh examples/llama_server.sh MODEL.gguf [PORT]
#
# LLAMA_SERVER names the program where it is not llama-server on PATH. It ends with this script.
set -eu
model=$1
port=${2:-8080}
"${LLAMA_SERVER:-llama-server}" -m "$model" --host 127.0.0.1 --port "$port" >/dev/null 2>&1 &
server=$!
trap 'kill "$server"' EXIT
until curl -sf "http://127.0.0.1:$port/health" >/dev/null; do
    kill -0 "$server" || { echo "the server has ended" >&2; exit 1; }
    sleep 0.2
done
curl -sf "http://127.0.0.1:$port/v1/completions" -H "Content-Type: application/json" \
    -d '{"prompt": "def main(", "max_tokens": 32, "temperature": 0}'
echo
