// The devices that the tests of a stage run on.
#pragma once

#include <memory>
#include <ostream>

#include "troupe/stages/cpu_device.hpp"

#include "inline_device.hpp"

namespace troupe::stages {

struct DeviceCase {
  const char* name;
  std::unique_ptr<Device> (*make)();

  friend std::ostream& operator<<(std::ostream& out, const DeviceCase& device) {
    return out << device.name;
  }
};

inline const DeviceCase device_cases[]{
    {"inline", []() -> std::unique_ptr<Device> { return std::make_unique<InlineDevice>(); }},
    {"separate", make_separate_device},
    {"cpu", [] { return make_cpu_device(); }},
};

}  // namespace troupe::stages
