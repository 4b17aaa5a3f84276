// cli/src/open_files.hpp -- how many connections a process can bear.
#pragma once

namespace troupe::cli {

/// Raises this process's limit of open files, and that of those it starts, to what the system
/// allows: usual are 1024, which strangers' connections alone can exhaust.
void raise_open_files_limit();

}  // namespace troupe::cli
