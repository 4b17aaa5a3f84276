// tests/scope.hpp -- how much of a large scope a test goes through.
#pragma once

namespace troupe {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool is_sanitized = true;
#else
inline constexpr bool is_sanitized = false;
#endif

/// `all` in an ordinary build, and `part` under a sanitizer, where everything takes some five times
/// as long: what it looks for, a part of the scope runs through as well.
template <class Count>
[[nodiscard]] constexpr Count scope(Count all, Count part) {
  return is_sanitized ? part : all;
}

}  // namespace troupe
