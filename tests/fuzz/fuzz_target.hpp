// The one function of a fuzz target: libFuzzer calls it with inputs it invents, replay.cpp with
// those kept in corpus/. It returns if all is well and aborts on a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "troupe/engine/check.hpp"
#include "troupe/engine/error.hpp"

// NOLINTNEXTLINE(readability-identifier-naming): the name is libFuzzer's.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes);

namespace troupe {

/// An error must have the expected code and be one readable line.
inline void check_refusal(const Error& error, Errc expected) {
  TROUPE_ASSERT(error.code == expected);
  TROUPE_ASSERT(!error.context.empty());
  TROUPE_ASSERT(error.context.find_first_of("\r\n") == std::string::npos);
}

}  // namespace troupe
