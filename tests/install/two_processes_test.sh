#!/bin/sh
# Usage: two_processes_test.sh PROGRAM     Trains in two processes and in one; the losses must be equal,
# bit for bit.
set -eu
program=$1
folder=$(mktemp -d)
director=
trap '[ -z "$director" ] || kill "$director" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
(umask 077 && head -c 32 /dev/urandom | base64 > secret)

"$program" alone > alone
"$program" direct 127.0.0.1 0 lo secret > directed 2> said &
director=$!
until grep -q '^listening at' said; do
  kill -0 "$director" || { cat said; exit 1; }
  sleep 0.05
done
"$program" join $(sed -n 's/^listening at //p' said) lo secret
wait "$director" || { cat said; exit 1; }
director=

[ "$(wc -l < alone)" -eq 100 ] || { echo "expected 100 steps:"; cat alone; exit 1; }
cmp alone directed
