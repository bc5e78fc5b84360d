#pragma once
#include <mpq/version.hpp>

/// The version that host_only.cpp was compiled with.
mpq::Version host_only_version();
