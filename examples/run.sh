#!/usr/bin/env bash
# Builds the examples and runs them: a checkpoint from tests/data end to end, on the GPU or else the
# CPU. Needs a C++20 compiler and, for the GPU, CUDA; installs what else is missing on Debian.
#   ./examples/run.sh [DIR]    DIR: another checkpoint directory
set -euo pipefail
checkpoint=$(realpath "${1:-$(dirname "$0")/../tests/data/gptq-w4-g128}")
cd "$(dirname "$0")/.."
. cmake/prepare-machine.sh

cmake --preset default || fail "could not configure"
cmake --build --preset default --target mpq_examples -j "$(nproc)" || fail "could not build"

echo
echo "== quickstart"
./build/bin/quickstart
echo
echo "== load_checkpoint"
./build/bin/load_checkpoint "$checkpoint"
if [ -x build/bin/cuda_graph ]; then
  echo
  echo "== cuda_graph"
  ./build/bin/cuda_graph
fi
