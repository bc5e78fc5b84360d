# Sourced by examples/run.sh, tests/run.sh and .ci/run: finds CUDA, and installs from Debian's
# packages what building mpq needs and the machine lacks. Does nothing where all is there.

fail() {
  echo "error: $*" >&2
  exit 1
}

if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
  export PATH="/usr/local/cuda/bin:$PATH"
fi

has_header() {
  echo "#include <$1>" | c++ -std=c++17 -E -x c++ - >/dev/null 2>&1
}

missing_packages() {
  command -v c++ >/dev/null || echo g++
  command -v cmake >/dev/null || echo cmake
  command -v ninja >/dev/null || echo ninja-build
  has_header fmt/format.h || echo libfmt-dev
  has_header nlohmann/json.hpp || echo nlohmann-json3-dev
  has_header CLI/CLI.hpp || echo libcli11-dev
  has_header catch2/catch.hpp || has_header catch2/catch_all.hpp || echo catch2
  has_header benchmark/benchmark.h || echo libbenchmark-dev
  # Only for the emulated device (tests/emulator).
  [ -z "${MPQ_WITH_EMULATOR-}" ] || has_header boost/context/fiber.hpp || echo libboost-context-dev
}

install_packages() {
  local packages as_root=()
  packages=$(missing_packages | tr '\n' ' ')
  [ -n "$packages" ] || return 0
  command -v apt-get >/dev/null ||
    fail "missing: ${packages% } (Debian's names), and there is no apt-get to install them"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
      fail "missing: ${packages% }; run as root: apt-get install ${packages% }"
    as_root=(sudo)
  fi
  echo "installing ${packages% }"
  "${as_root[@]}" apt-get update -q=2 || echo "warning: apt-get update failed" >&2
  # shellcheck disable=SC2086  # one word a package
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q=2 -y --no-install-recommends $packages >/dev/null ||
    fail "could not install: ${packages% }"
  packages=$(missing_packages | tr '\n' ' ')
  [ -z "$packages" ] || fail "still not found after installing: ${packages% }"
}

install_packages
cmake_version=$(cmake --version | sed -n '1s/.* //p')
printf '3.25\n%s\n' "$cmake_version" | sort -CV || fail "cmake is $cmake_version, mpq needs 3.25"
