// actors/src/open_fabric.hpp -- a process's way to the links of others.
#pragma once

#include <memory>

#include "troupe/transport/ucx_fabric.hpp"

namespace troupe::actors {

/// Removes what killed processes left in shared memory, then makes a fabric. Blocks. An error says
/// so if shared memory is nearly full.
[[nodiscard]] Expected<std::unique_ptr<transport::UcxFabric>> open_fabric(
    const transport::UcxOptions& options);

}  // namespace troupe::actors
