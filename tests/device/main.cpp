// Runs the tests where there is a CUDA device. Where there is none it says so and returns what
// CTest takes for "skipped"; listing works everywhere, since the build itself lists tests.
#include <cstdio>
#include <cstring>

#include "mpq/device.hpp"
#include "support/session.hpp"

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in tests/CMakeLists.txt

bool lists(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--list", 6) == 0 || std::strcmp(argv[i], "-l") == 0) return true;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (!lists(argc, argv) && mpq::Device::cuda_count() == 0) {
    std::puts("skipped: no CUDA device");
    return kSkipped;
  }
  return mpq::test::run_session(argc, argv);
}
