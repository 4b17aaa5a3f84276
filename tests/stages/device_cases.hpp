// The devices that the tests of a stage run on.
#pragma once

#include <memory>
#include <ostream>
#include <vector>

#include "troupe/stages/cpu_device.hpp"

#include "../scope.hpp"
#include "inline_device.hpp"

namespace troupe::stages {

struct DeviceCase {
  const char* name;
  std::unique_ptr<Device> (*make)();

  friend std::ostream& operator<<(std::ostream& out, const DeviceCase& device) {
    return out << device.name;
  }
};

/// Not the separate one under a sanitizer, which looks after memory of the heap.
inline std::vector<DeviceCase> device_cases() {
  std::vector<DeviceCase> cases{
      {"inline", []() -> std::unique_ptr<Device> { return std::make_unique<InlineDevice>(); }},
      {"cpu", [] { return make_cpu_device(); }}};
  if (!is_sanitized) cases.push_back({"separate", make_separate_device});
  return cases;
}

}  // namespace troupe::stages
