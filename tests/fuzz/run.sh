#!/usr/bin/env bash
# run.sh BIN_DIR SECONDS: every harness for that long, side by side, from its kept corpus; what they find on
# the way goes to a folder that is thrown away. An input that breaks something is left in BIN_DIR as
# crash-*: move it to corpus/<target>/ with the fix.
set -euo pipefail
bin="$1"
seconds="$2"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
work="$(mktemp -d)"
declare -A running=()
finish() {
  if [ "${#running[@]}" -ne 0 ]; then kill "${running[@]}" 2>/dev/null || true; fi
  wait
  rm -rf "$work"
}
trap finish EXIT

for corpus in "$here"/corpus/*/; do
  target="$(basename "$corpus")"
  mkdir "$work/$target"
  "$bin/fuzz_$target" "$work/$target" "$corpus" -max_total_time="$seconds" -timeout=30 \
    -rss_limit_mb=2048 -artifact_prefix="$bin/" -print_final_stats=1 >"$work/$target.log" 2>&1 &
  running[$target]=$!
done

failed=0
for target in "${!running[@]}"; do
  printf 'fuzz_%s, %s s: ' "$target" "$seconds"
  if wait "${running[$target]}"; then
    grep -o 'number_of_executed_units: .*' "$work/$target.log"
  else
    failed=1
    echo "failed"
    tail -60 "$work/$target.log"
  fi
  unset "running[$target]"
done
exit "$failed"
