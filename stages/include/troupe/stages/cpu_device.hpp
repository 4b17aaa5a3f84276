// troupe/stages/cpu_device.hpp -- the device made of this machine's processor cores.
#pragma once

#include <memory>

#include "troupe/stages/device.hpp"

namespace troupe::stages {

/// Makes the CPU device. A stream is one worker thread (plus its helpers when it has more than one
/// thread); kernels use the widest vector instructions that the processor has.
[[nodiscard]] std::unique_ptr<Device> make_cpu_device();

}  // namespace troupe::stages
