#!/usr/bin/env bash
# run.sh BIN_DIR SECONDS: every harness for that long, from its kept corpus; what it finds on the way goes to
# a folder that is thrown away. An input that breaks something is left in BIN_DIR as crash-*: move it
# to corpus/<target>/ with the fix.
set -euo pipefail
bin="$1"
seconds="$2"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
for corpus in "$here"/corpus/*/; do
  target="$(basename "$corpus")"
  found="$(mktemp -d)"
  log="$found.log"
  printf 'fuzz_%s, %s s: ' "$target" "$seconds"
  if ! "$bin/fuzz_$target" "$found" "$corpus" -max_total_time="$seconds" -timeout=30 \
    -rss_limit_mb=2048 -artifact_prefix="$bin/" -print_final_stats=1 >"$log" 2>&1; then
    echo "failed"
    tail -60 "$log"
    exit 1
  fi
  grep -o 'number_of_executed_units: .*' "$log"
  rm -rf "$found" "$log"
done
