// Our own main: Catch2 2 and 3 name the library that holds theirs differently.
#include "support/session.hpp"

int main(int argc, char** argv) {
  return mpq::test::run_session(argc, argv);
}
