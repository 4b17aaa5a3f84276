// troupe/stages/stage_buffers.hpp -- the buffers through which a virtual stage meets its
// neighbours.
//
// Pools of equal-sized buffers, bounded by the plan, one pool per edge. A buffer is free, or it
// belongs to a microbatch, or a link has it.
#pragma once

#include <array>
#include <vector>

#include "troupe/engine/check.hpp"
#include "troupe/engine/index.hpp"
#include "troupe/engine/memory.hpp"

namespace troupe::stages {

/// One side of a stage. The tied edges exist on the first and the last stage when their embeddings
/// are tied: they carry one gradient per step, kept under microbatch 0.
enum class Edge : std::uint8_t {
  activation_in,
  activation_out,
  gradient_in,
  gradient_out,
  tied_in,
  tied_out,
};
inline constexpr std::size_t edge_count = 6;

/// Book-keeping only: touches no byte of a buffer. Belongs to the actor that drives the stage; no
/// other thread may call it. Allocates nothing after `add` has given it its buffers.
class StageBuffers {
public:
  explicit StageBuffers(std::uint32_t microbatch_count) {
    for (auto& pool : pools_) pool.held.resize(microbatch_count);
  }

  /// Gives the pool of `edge` one more buffer.
  void add(Edge edge, Buffer buffer) { of(edge).free.push_back(std::move(buffer)); }

  /// Takes a free buffer, to receive into. Aborts when there is none: the `StageMachine` counts.
  [[nodiscard]] Buffer take_free(Edge edge) {
    auto& pool = of(edge);
    TROUPE_ASSERT(!pool.free.empty());
    auto buffer = std::move(pool.free.back());
    pool.free.pop_back();
    return buffer;
  }

  /// Returns a buffer to its pool.
  void give_free(Edge edge, Buffer buffer) {
    TROUPE_ASSERT(static_cast<bool>(buffer));
    of(edge).free.push_back(std::move(buffer));
  }

  /// Makes `buffer` the one of `microbatch`.
  void hold(Edge edge, MicrobatchIndex microbatch, Buffer buffer) {
    auto& held = of(edge).held.at(microbatch.value());
    TROUPE_ASSERT(!held);
    held = std::move(buffer);
  }

  /// The buffer that belongs to `microbatch`; aborts when none does.
  [[nodiscard]] BufferView held(Edge edge, MicrobatchIndex microbatch) const {
    const auto& held = of(edge).held.at(microbatch.value());
    TROUPE_ASSERT(static_cast<bool>(held));
    return held.view();
  }

  [[nodiscard]] bool holds(Edge edge, MicrobatchIndex microbatch) const {
    return static_cast<bool>(of(edge).held.at(microbatch.value()));
  }

  /// Takes the buffer of `microbatch`, to send it.
  [[nodiscard]] Buffer release(Edge edge, MicrobatchIndex microbatch) {
    auto& held = of(edge).held.at(microbatch.value());
    TROUPE_ASSERT(static_cast<bool>(held));
    return std::move(held);
  }

  [[nodiscard]] std::size_t free_count(Edge edge) const { return of(edge).free.size(); }

private:
  struct Pool {
    std::vector<Buffer> free;
    std::vector<Buffer> held;  ///< By microbatch.
  };

  [[nodiscard]] Pool& of(Edge edge) { return pools_[static_cast<std::size_t>(edge)]; }
  [[nodiscard]] const Pool& of(Edge edge) const { return pools_[static_cast<std::size_t>(edge)]; }

  std::array<Pool, edge_count> pools_;
};

}  // namespace troupe::stages
