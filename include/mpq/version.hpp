#pragma once
// The one place where the version is written; CMakeLists.txt parses it from here.

#define MPQ_VERSION_MAJOR 0
#define MPQ_VERSION_MINOR 1
#define MPQ_VERSION_PATCH 0

namespace mpq {

struct Version {
  int major, minor, patch;
};

/// Version of these headers.
inline constexpr Version kVersion{MPQ_VERSION_MAJOR, MPQ_VERSION_MINOR, MPQ_VERSION_PATCH};

}  // namespace mpq
