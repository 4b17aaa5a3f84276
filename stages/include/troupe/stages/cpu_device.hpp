// troupe/stages/cpu_device.hpp -- the device made of this machine's processor cores.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "troupe/stages/device.hpp"

namespace troupe::stages {

/// Makes the CPU device. A stream is one worker thread (plus its helpers when it has more than one
/// thread); kernels use the widest vector instructions that the processor has.
[[nodiscard]] std::unique_ptr<Device> make_cpu_device();

/// Names the instruction sets that kernels were compiled for and this processor has: "baseline",
/// "avx2", "avx512". Kernels use the last.
[[nodiscard]] std::vector<std::string> cpu_instruction_sets();

/// Returns the version of the oneDNN library that is loaded and multiplies matrices, for example
/// "2.6.3".
[[nodiscard]] std::string onednn_version();

}  // namespace troupe::stages
