// troupe/engine/inline_function.hpp -- a move-only callable that never allocates.
#pragma once

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include "troupe/engine/check.hpp"

namespace troupe {

template <class Signature, std::size_t size_bytes = 64>
class InlineFunction;

/// Like `std::move_only_function`, except that a callable larger than `size_bytes` does not compile
/// instead of moving to the heap: completions and stream tasks are made once per operation, and
/// the steady state of a run does not allocate.
template <class Result, class... Arguments, std::size_t size_bytes>
class InlineFunction<Result(Arguments...), size_bytes> {
public:
  InlineFunction() = default;

  template <class Callable>
  requires(
      !std::is_same_v<std::remove_cvref_t<Callable>,
                      InlineFunction> && std::is_invocable_r_v<Result, Callable&, Arguments...>)
      // Implicit, so that a lambda can be passed where a completion is expected.
      // NOLINTNEXTLINE(google-explicit-constructor)
      InlineFunction(Callable&& callable) {
    using Stored = std::remove_cvref_t<Callable>;
    static_assert(sizeof(Stored) <= size_bytes, "the callable captures too much");
    static_assert(alignof(Stored) <= alignof(std::max_align_t));
    static_assert(std::is_nothrow_move_constructible_v<Stored>);
    ::new (static_cast<void*>(storage_)) Stored(std::forward<Callable>(callable));
    operations_ = &operations_of<Stored>;
  }

  InlineFunction(InlineFunction&& other) noexcept { take(other); }
  InlineFunction& operator=(InlineFunction&& other) noexcept {
    if (this != &other) {
      reset();
      take(other);
    }
    return *this;
  }
  ~InlineFunction() { reset(); }

  [[nodiscard]] explicit operator bool() const noexcept { return operations_ != nullptr; }

  Result operator()(Arguments... arguments) {
    TROUPE_ASSERT(operations_ != nullptr);
    return operations_->call(storage_, std::forward<Arguments>(arguments)...);
  }

private:
  struct Operations {
    Result (*call)(void*, Arguments&&...);
    void (*move)(void* from, void* to) noexcept;
    void (*destroy)(void*) noexcept;
  };

  template <class Stored>
  static constexpr Operations operations_of{
      [](void* self, Arguments&&... arguments) -> Result {
        return (*static_cast<Stored*>(self))(std::forward<Arguments>(arguments)...);
      },
      [](void* from, void* to) noexcept {
        ::new (to) Stored(std::move(*static_cast<Stored*>(from)));
        static_cast<Stored*>(from)->~Stored();
      },
      [](void* self) noexcept { static_cast<Stored*>(self)->~Stored(); },
  };

  void take(InlineFunction& other) noexcept {
    operations_ = std::exchange(other.operations_, nullptr);
    if (operations_ != nullptr) operations_->move(other.storage_, storage_);
  }

  void reset() noexcept {
    if (operations_ != nullptr) std::exchange(operations_, nullptr)->destroy(storage_);
  }

  alignas(std::max_align_t) std::byte storage_[size_bytes];
  const Operations* operations_ = nullptr;
};

}  // namespace troupe
