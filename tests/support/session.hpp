#pragma once
// Catch2's runner, compiled once for all test programs: with Catch2 2 it is most of what they take
// to build.

namespace mpq::test {

/// Runs the program's tests; what main is to return.
int run_session(int argc, char** argv);

}  // namespace mpq::test
