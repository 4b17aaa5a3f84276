// stages/src/gpt2_tensors.hpp -- the arena of a GPT-2 stage, cut into tensors.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "troupe/engine/model_layout.hpp"
#include "troupe/stages/gpt2_stage.hpp"

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

  /// The next tensor is one of `holder`.
  [[nodiscard]] bool at(std::string_view holder) const {
    return next_ < list_.size() && list_[next_].holder == holder;
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

/// What a forward pass saves of one layer, and the gradients of it. With B the gradients lie in the
/// workspace that all layers share; with I and W in the slot, where
/// `d_qkv` and `d_expanded` take the place of `qkv` and `expanded` of the layer above.
struct LayerTensors {
  float* norm_1 = nullptr;       ///< [rows, hidden]
  float* mean_1 = nullptr;       ///< [rows]
  float* rstd_1 = nullptr;       ///< [rows]
  float* qkv = nullptr;          ///< [rows, 3 hidden]
  float* log_sum_exp = nullptr;  ///< [batch, heads, sequence]
  float* attended = nullptr;     ///< [rows, hidden]
  float* middle = nullptr;       ///< [rows, hidden], between attention and feed-forward.
  float* norm_2 = nullptr;       ///< [rows, hidden]
  float* mean_2 = nullptr;       ///< [rows]
  float* rstd_2 = nullptr;       ///< [rows]
  float* expanded = nullptr;     ///< [rows, 4 hidden]
  float* activated = nullptr;    ///< [rows, 4 hidden]

  float* d_norm_1 = nullptr;
  float* d_qkv = nullptr;
  float* d_attended = nullptr;
  float* d_middle = nullptr;
  float* d_norm_2 = nullptr;
  float* d_expanded = nullptr;
};

/// The final norm, the logits and the loss.
struct HeadTensors {
  float* norm = nullptr;    ///< [rows, hidden]
  float* mean = nullptr;    ///< [rows]
  float* rstd = nullptr;    ///< [rows]
  float* logits = nullptr;  ///< [rows, vocabulary]; after a training F their gradient.
  double* loss = nullptr;   ///< Sum over the rows.

  float* d_norm = nullptr;
};

/// The buffers of one microbatch in flight.
struct Slot {
  /// The input of each layer, then the input of the head: [layers + 1] of [rows, hidden]. The first
  /// is an edge buffer unless the stage has the embedding, the last unless it has the head.
  std::vector<float*> hidden;
  std::vector<float*> d_hidden;
  std::vector<LayerTensors> layers;
  HeadTensors head;
};

/// Everything in the two arenas of one stage.
struct Gpt2Tensors {
  /// Cuts what `tensors_of(props...)` lists, `host_cutter` what of it is for the host; gives edge
  /// buffers to `buffers`.
  Gpt2Tensors(const StageProps& props, std::span<const ParameterSpec> specs, ArenaCutter& cutter,
              ArenaCutter& host_cutter, StageBuffers& buffers);

  std::vector<ParameterView> parameters;
  std::vector<std::vector<std::span<float>>> optimizer_state;  ///< [words][parameters]
  std::span<float> head_half;  ///< The head's half of the tied gradient, when both are here.
  std::vector<Slot> slots;
  std::span<double> gradient_squares;  ///< [parameters]
  std::span<std::int32_t> tokens;      ///< [microbatches, rows], where the embedding is.
  std::span<std::int32_t> targets;     ///< [microbatches, rows], where the head is.

  /// What the host reads of the results.
  struct {
    std::span<double> losses;            ///< [microbatches], where the head is.
    std::span<double> gradient_squares;  ///< [parameters]
  } host;

private:
  void cut_parameters(const StageProps& props, std::span<const ParameterSpec> specs,
                      ArenaCutter& cutter);
  void cut_slot(const StageProps& props, std::uint32_t index, ArenaCutter& cutter);
  void cut_slot_gradients(const StageProps& props, const std::string& prefix, Slot& slot,
                          ArenaCutter& cutter);
  void cut_workspace(const StageProps& props, ArenaCutter& cutter);
};

}  // namespace troupe::stages
