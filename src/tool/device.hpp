#pragma once
// Devices as options name them.

#include <string>

#include "mpq/checkpoint.hpp"
#include "mpq/device.hpp"

namespace mpq::tool {

constexpr auto kDeviceHelp = "auto, cpu, cuda or cuda:N";

/// Throws Error(invalid_argument) naming the text if it is none of kDeviceHelp.
Device parse_device(const std::string& text);

/// The traits to plan for, and the name to tell: those of the first CUDA device, or else of one
/// that is assumed.
struct PlannedDevice {
  DeviceTraits traits;
  std::string name;

  PlannedDevice();
};

/// What the CUDA back end would run for a layer of the checkpoint.
std::string kernel_text(const LayerInfo& layer, std::int64_t batch, const DeviceTraits& traits);

}  // namespace mpq::tool
