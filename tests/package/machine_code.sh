#!/usr/bin/env bash
# What the kernels' machine code must not have: local memory (registers that were spilled, arrays
# that did not fit into registers) and atomic additions of floats, whose order is not fixed.
#   machine_code.sh LIBRARY [CUOBJDUMP]    exit code 77: there is no cuobjdump
set -euo pipefail
library=$1
cuobjdump=${2:-cuobjdump}
if ! command -v "$cuobjdump" >/dev/null; then
  echo "skipped: no cuobjdump (CUDA's cuda-cuobjdump package) to look into $library with"
  exit 77
fi

"$cuobjdump" -res-usage "$library" 2>/dev/null | awk '
  /arch = / { arch = $NF }
  /Function / { name = $2 }
  /REG:/ {
    ++kernels
    match($0, /STACK:[0-9]+/)
    stack = substr($0, RSTART + 6, RLENGTH - 6) + 0
    # The decode kernels for Ampere spill a few words, which they need once a tile.
    allowed = arch == "sm_80" && name ~ /6decodeILi/ ? 32 : 0
    if (stack > allowed || !/LOCAL:0 /) { print "local memory: " arch " " name $0; ++bad }
  }
  END {
    if (!kernels) { print "no kernels were found"; exit 1 }
    print kernels " kernels, " bad + 0 " with more local memory than they may have"
    exit bad > 0
  }'

# ATOM, ATOMG, ATOMS, RED and REDG, with a floating-point type. Of some hundred MB awk need not see all.
lines='Function :| (ATOM|ATOMG|ATOMS|RED|REDG|HGMMA|HMMA|IMMA)[.]'
"$cuobjdump" -sass "$library" 2>/dev/null | { LC_ALL=C grep -E "$lines" || true; } | awk '
  /Function :/ { name = $3 }
  / (ATOM|ATOMG|ATOMS|RED|REDG)[.]/ && /[.](BF|F)(16|32|64)/ { print "float atomics: " name ": " $0; ++bad }
  / (HGMMA|HMMA|IMMA)[.]/ { ++products }
  END {
    if (!products) { print "no products were found: is this the machine code?"; exit 1 }
    print products " products of tensor cores, " bad + 0 " atomic additions of floats"
    exit bad > 0
  }'
