// stages/src/stage_memory.hpp -- the arena of a stage, cut into tensors.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "troupe/engine/model_layout.hpp"
#include "troupe/stages/transformer_stage.hpp"

namespace troupe::stages {

/// Cuts an arena in the order of `tensors_of`; a name out of order aborts.
class ArenaCutter {
public:
  /// Both outlive the cutter.
  ArenaCutter(BufferView arena, std::span<const TensorSpec> list) : arena_{arena}, list_{list} {}

  [[nodiscard]] BufferView buffer(std::string_view name);
  [[nodiscard]] std::span<float> floats(std::string_view name);
  [[nodiscard]] std::span<double> doubles(std::string_view name);
  [[nodiscard]] std::span<std::int32_t> integers(std::string_view name);

  /// The next tensor is one of `use`.
  [[nodiscard]] bool at(std::string_view use) const {
    return next_ < list_.size() && list_[next_].use == use;
  }
  /// Every byte has been cut.
  [[nodiscard]] bool done() const {
    return next_ == list_.size() && offset_bytes_ == arena_.size_bytes;
  }

private:
  BufferView arena_;
  std::span<const TensorSpec> list_;
  std::size_t next_ = 0;
  std::size_t offset_bytes_ = 0;
};

/// The memory of one microbatch in flight.
struct Slot {
  BufferView memory;  ///< On the device; where slots are offloaded, in the pass being enqueued.
  /// The edge buffers of the microbatch, once they are known.
  float* activation_in = nullptr;
  float* activation_out = nullptr;
  float* gradient_in = nullptr;
  float* gradient_out = nullptr;
};

/// Everything in the two arenas of one stage.
struct StageMemory {
  /// Cuts what `tensors_of(graph, props...)` lists, `host_cutter` what of it is for the host; gives
  /// edge buffers to `buffers`. `graph` outlives the object.
  StageMemory(const StageProps& props, const StageGraph& graph, ArenaCutter& cutter,
              ArenaCutter& host_cutter, StageBuffers& buffers);

  std::vector<ParameterView> parameters;  ///< Of the copies that are in use.
  /// By copy, by parameter: see `StageShape::copy_count`.
  std::vector<std::vector<std::span<float>>> values;
  std::vector<std::vector<std::span<float>>> gradients;
  void use_values(std::uint32_t copy);
  void use_gradients(std::uint32_t copy);

  /// What of a parameter the stage updates, in pieces of one length.
  struct Updated {
    std::span<float> values;
    std::span<float> gradients;
    std::vector<std::span<float>> state;  ///< The optimizer's arrays.
  };
  std::vector<Updated> updated;  ///< By parameter, of a stage that trains.
  /// By bucket, where gradients are kept in parts: the sums of this holder's part; else empty.
  std::vector<std::span<float>> gradient_parts;
  std::vector<bool> is_kept_in_parts;  ///< By parameter: whether its gradients are.
  std::span<float> head_half;  ///< The head's half of the tied gradient, when both are here.
  std::vector<Slot> slots;
  std::vector<BufferView> places;  ///< On the device, for slots that are offloaded; else none.
  BufferView workspace;
  std::span<float> turns;               ///< [sequence, head_size], where positions are rotary.
  std::span<std::int32_t> predictions;  ///< [sequences] of a microbatch, where classes are told.
  std::span<double> gradient_squares;   ///< [parameters]
  std::span<float> optimizer_sums;      ///< Of one parameter at a time; for Adafactor.
  // Of a batch, by microbatch; empty where they are not needed.
  std::span<std::int32_t> tokens;
  std::span<std::int32_t> segments;
  std::span<std::int32_t> lengths;
  std::span<std::int32_t> targets;

  /// In host memory: slots, and what the host reads of the results.
  struct {
    std::vector<BufferView> slots;        ///< Where they are offloaded.
    std::span<double> losses;             ///< [microbatches], where the head is.
    std::span<std::int32_t> predictions;  ///< [microbatches, sequences], where classes are told.
    std::span<double> gradient_squares;   ///< [parameters]
  } host;

private:
  static std::vector<std::span<float>> cut_each(std::span<const ParameterSpec> specs,
                                                ArenaCutter& cutter, std::uint32_t copy);
  void cut_parameters(const StageShape& shape, const StageGraph& graph, ArenaCutter& cutter);
  void cut_gradients(const StageShape& shape, const StageGraph& graph, ArenaCutter& cutter);
  void cut_gradients_of_copy(const std::vector<bool>& in_parts, const StageGraph& graph,
                             ArenaCutter& cutter, std::uint32_t copy);
  void cut_batch(const StageProps& props, bool predicts, ArenaCutter& cutter,
                 ArenaCutter& host_cutter);
  void cut_updated(const StageShape& shape, const StageGraph& graph, ArenaCutter& cutter);
};

}  // namespace troupe::stages
