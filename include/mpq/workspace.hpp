#pragma once
// Scratch memory for one forward call, owned by the caller.

#include <cstddef>

#include "mpq/device.hpp"

namespace mpq {

/// Alignment that a workspace needs, bytes. cudaMalloc and DeviceBuffer give it.
inline constexpr std::size_t kWorkspaceAlignment = 256;

/// A view of scratch memory on the layer's device, of at least Linear::workspace_bytes(batch)
/// bytes. Calls that may run at the same time need different workspaces; calls in one stream may
/// share one.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;

  Workspace() = default;
  Workspace(void* data_, std::size_t bytes_) : data(data_), bytes(bytes_) {}
  Workspace(const DeviceBuffer& buffer) : data(buffer.data()), bytes(buffer.size()) {}
};

}  // namespace mpq
