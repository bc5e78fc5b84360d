#!/usr/bin/env bash
# Builds everything and runs all tests; device tests skip, and are counted, where there is no GPU.
# Installs what is missing on Debian.
#   ./tests/run.sh [CTEST OPTIONS]    for instance: ./tests/run.sh -R '^host:'
set -euo pipefail
cd "$(dirname "$0")/.."
. cmake/prepare-machine.sh

cmake --preset default || fail "could not configure"
cmake --build --preset default -j "$(nproc)" || fail "could not build"

results=$PWD/build/test-results.xml
rm -f "$results"
status=0
ctest --test-dir build --output-on-failure --no-tests=error --progress -j "$(nproc)" \
  --output-junit "$results" "$@" || status=$?

[ -f "$results" ] || exit "$status"
count() { sed -n "s/^[[:space:]]*$1=\"\([0-9]*\)\".*/\1/p" "$results" | head -1; }
skipped=$(count skipped) disabled=$(count disabled)
echo
echo "$(count tests) tests: $(count failures) failed, $((skipped + disabled)) skipped"
if [ "$skipped" -gt 0 ]; then
  # Only device tests skip (tests/device/main.cpp).
  echo "skipped: device tests, because no CUDA device was found"
elif ! ./build/bin/mpq_device_tests --list-tests >/dev/null 2>&1; then
  echo "device tests were not built: no CUDA compiler was found"
fi
exit "$status"
