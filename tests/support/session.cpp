#include "support/session.hpp"

#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_RUNNER
#endif
#include "support/catch.hpp"

namespace mpq::test {

int run_session(int argc, char** argv) {
  return Catch::Session().run(argc, argv);
}

}  // namespace mpq::test
