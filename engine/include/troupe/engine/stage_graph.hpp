// troupe/engine/stage_graph.hpp -- what a stage computes, kernel call by kernel call, and where in
// its memory each value lies.
//
// A model family is a list of operations on named values (layer_builder.hpp). From it everything
// else follows: the parameters, the calls of every pass with their gradients, what a
// slot must keep from one pass to the next, which values share memory, and the floating-point
// operations.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "troupe/engine/model_spec.hpp"
#include "troupe/engine/partition.hpp"

namespace troupe {

/// How a parameter starts.
enum class Initial : std::uint8_t {
  zeros,
  ones,
  normal,  ///< Mean 0, standard deviation `ParameterSpec::deviation`.
};

/// One of the shards of a stage: they share its layers by heads, by columns of the feed-forward and
/// by words of the vocabulary (Shoeybi et al. 2019).
struct Shard {
  std::uint32_t index = 0;
  std::uint32_t count = 1;
  /// Sequence parallelism (Korthikanti et al. 2022): what is not divided so, between the products,
  /// each shard has of its own rows alone, the `index`-th of `count` equal stretches.
  bool divides_rows = false;

  friend bool operator==(const Shard&, const Shard&) = default;
};

/// The part of a parameter that a shard holds. Along `axis` the whole consists of `part_count`
/// equal parts, of each of which the shard holds the elements `[begin, end)`: of queries, keys and
/// values side by side, for example, a range of each.
struct ParameterSlice {
  std::vector<std::uint64_t> whole_shape;
  std::uint32_t axis = 0;
  std::uint32_t part_count = 1;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// One parameter tensor. Names and whole shapes are those of Hugging Face's model of the family.
struct ParameterSpec {
  std::string name;
  std::vector<std::uint64_t> shape;       ///< Of what the shard holds.
  std::optional<ParameterSlice> slice{};  ///< If that is not the whole; else all shards hold it.
  Initial initial = Initial::zeros;
  float deviation = 0.0F;
  bool decays = false;  ///< Weight decay applies: matrices, not norms and biases.
  bool owned = true;    ///< False for the last stage's copy of a tied embedding.
  bool joined = false;  ///< Lies right behind the one before it: together they are one matrix.

  [[nodiscard]] std::uint64_t element_count() const noexcept;
  [[nodiscard]] const std::vector<std::uint64_t>& whole_shape() const noexcept {
    return slice ? slice->whole_shape : shape;
  }
};

/// A stretch of elements that lies without gaps in a shard's part of a parameter and in the whole.
struct ParameterRun {
  std::uint64_t in_part = 0;
  std::uint64_t in_whole = 0;
  std::uint64_t count = 0;
};

/// What a shard holds of a parameter, in order.
[[nodiscard]] std::vector<ParameterRun> runs_of(const ParameterSpec& spec);

/// How a weight matrix is stored.
enum class WeightLayout : std::uint8_t {
  in_out,  ///< [in, out]: y = x w. GPT-2's published layout.
  out_in,  ///< [out, in]: y = x w^T. Llama's, and an embedding that serves as the head.
};

/// What an operation does to its values; `stages::Kernels` has the formulas.
enum class OperationKind : std::uint8_t {
  embedding,      ///< tokens -> y: zero for words of other shards. Its bias are the positions.
  segments,       ///< x -> y = x, where it lies: the row of each token's segment is added.
  layer_norm,     ///< x -> y; saves rstd and mean.
  rms_norm,       ///< x -> y; saves rstd.
  linear,         ///< x (and residual) -> y
  rotate,         ///< x = qkv -> y = x, where it lies: queries and keys turn with their position.
  attention,      ///< x = qkv -> y; saves log_sum_exp.
  gelu,           ///< x -> y
  exact_gelu,     ///< x -> y
  swiglu,         ///< x = gates and values, side by side -> y, half as wide.
  first_tokens,   ///< x -> y: the first row of each sequence.
  tanh,           ///< x -> y
  add,            ///< x and residual -> y
  custom,         ///< x -> y: `StageGraph::custom_operations` has which.
  dropout,        ///< x (and residual) -> y: training drops elements of x.
  cross_entropy,  ///< x = logits -> the loss, `saved[0]`; training, their gradient replaces them.
                  ///< Between shards it reads `saved[1]`, the statistics of all.

  // Between the shards of a stage; x = y.
  sum_shards,       ///< Forward the sum over all shards; backward nothing.
  share,            ///< Forward nothing; backward the sum over all shards.
  word_statistics,  ///< x = logits -> what the others must know of these words, in y.
  gather_shards,    ///< Every shard's part of y.

  // Between shards that divide rows.
  gather_rows,  ///< Every shard's rows of x -> y, all rows; backward the own rows, if `is_term` of
                ///< the sum over all shards.
  sum_to_rows,  ///< The sum of x over all shards, of the own rows (and residual) -> y; backward
                ///< every shard's rows.
};

/// One value: a tensor of a stage.
using ValueIndex = std::uint32_t;
inline constexpr ValueIndex no_value = ~ValueIndex{0};
inline constexpr std::uint32_t no_parameter = ~std::uint32_t{0};

/// An operation that a program defines, on rows that do not depend on each other. x consists of
/// `part_count` parts of one width, side by side, of which y has one.
struct CustomOperation {
  /// Of a vector of y's width: `<name of the operation in the layer>.<name>`.
  struct Parameter {
    std::string name;
    Initial initial = Initial::ones;  ///< Ones or zeros.

    friend bool operator==(const Parameter&, const Parameter&) = default;
  };

  std::string name;  ///< Under which its kernel is given, see `stages::CustomKernel`.
  std::uint32_t part_count = 1;
  /// A column of y depends on the same column of each part of x alone. Otherwise it cannot be
  /// applied to values whose columns shards divide.
  bool is_by_column = true;
  std::vector<Parameter> parameters{};  ///< At most two.
  // Floating-point operations for each element of y, for the plan.
  double forward_flops = 0.0;
  double backward_flops = 0.0;

  friend bool operator==(const CustomOperation&, const CustomOperation&) = default;
};
inline constexpr std::uint32_t custom_parameters_max = 2;
inline constexpr std::uint32_t no_custom_operation = ~std::uint32_t{0};

/// One operation of a stage, its values those that its forward pass makes.
struct Operation {
  OperationKind kind{};
  WeightLayout layout = WeightLayout::in_out;
  /// In `StageGraph::parameters`; the gain of a norm, the first of a custom operation.
  std::uint32_t weight = no_parameter;
  std::uint32_t bias = no_parameter;
  std::uint32_t in = 0;   ///< Width of x.
  std::uint32_t out = 0;  ///< Width of y.
  /// That it works on: the tokens of the microbatch, the shard's own of them, or the sequences.
  std::uint32_t rows = 0;
  /// Its result is one of the terms of a sum over shards, of which the first also has bias,
  /// segments and residual.
  bool is_term = false;
  /// Backward, what it makes for x is one of the terms of a sum over shards, which `share` makes.
  bool is_term_backward = false;
  bool on_own_rows = false;      ///< x and y are the shard's rows alone.
  std::uint32_t word_begin = 0;  ///< The first word of the vocabulary that the shard holds.
  double dropout = 0.0;  ///< The share that training drops: of x, or of attention's probabilities.
  std::uint32_t custom = no_custom_operation;
  std::uint32_t site = 0;  ///< Which of the model's dropouts that is, however the model is cut.
  ValueIndex x = no_value;
  ValueIndex residual = no_value;  ///< Is added to y.
  ValueIndex y = no_value;
  ValueIndex saved[2] = {no_value, no_value};  ///< What its backward pass needs besides.
};

/// Where a value lies.
enum class ValuePlace : std::uint8_t {
  slot,       ///< In the memory of the microbatch, from one pass to another.
  workspace,  ///< In memory that all passes of the stage share, within one pass.
  activation_in,
  activation_out,
  gradient_in,
  gradient_out,
};

struct Value {
  std::string name;
  std::uint64_t size_bytes = 0;
  ValuePlace place = ValuePlace::workspace;
  std::uint64_t offset_bytes = 0;  ///< In slot or workspace.
};

enum class Direction : std::uint8_t {
  forward,
  backward_input,
  backward_weight,
  sum,  ///< dx = dy + d_residual: gradients of a value that came by two ways.
};

/// One kernel call of a pass; the values are those it reads and writes, `no_value` where none.
struct KernelCall {
  Direction direction{};
  std::uint32_t operation = 0;
  ValueIndex x = no_value;
  ValueIndex residual = no_value;
  ValueIndex y = no_value;
  ValueIndex saved[2] = {no_value, no_value};
  ValueIndex dy = no_value;
  ValueIndex dx = no_value;          ///< May be `dy` itself.
  ValueIndex d_residual = no_value;  ///< The gradient of x that comes by another way; added to dx.
  bool adds_bias = true;             ///< Forward, if there is one.
  bool completes_bucket = false;     ///< The next bucket has this microbatch's gradients.
};

/// The parameters `[begin, end)`, whose gradients lie side by side and are reduced together.
struct Bucket {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;

  friend bool operator==(const Bucket&, const Bucket&) = default;
};

/// Floating-point operations of a pass of one microbatch on a stage, a multiply-add counted as two;
/// attention, causal or not, counted in full: for GPT-2 together 6 N + 12 L T C per token, N the
/// elements of the matrices that multiply (Narayanan et al. 2021, appendix; Chowdhery et al. 2022,
/// appendix B). Of other operations only those count that a program defines, as it says.
struct PassFlops {
  double forward = 0.0;
  double backward_input = 0.0;
  double backward_weight = 0.0;
};

/// What a stage computes, and in which memory.
struct StageGraph {
  std::vector<ParameterSpec> parameters;  ///< In model order: that of the serial forward pass.
  std::vector<Operation> operations;
  std::vector<CustomOperation> custom_operations;  ///< Each once.
  std::vector<Value> values;

  std::vector<KernelCall> forward;
  /// The whole backward pass, or its halves if the stage splits it; empty if it does not train.
  std::vector<KernelCall> backward;
  std::vector<KernelCall> backward_input;
  std::vector<KernelCall> backward_weight;

  /// In the order in which a backward pass completes them. With tied embeddings, the tied parameter
  /// is a bucket of its own, the last, on the first and on the last stage. Empty if the stage does
  /// not train.
  std::vector<Bucket> buckets;
  bool has_tied_bucket = false;

  std::uint64_t slot_bytes = 0;       ///< Of one microbatch in flight.
  std::uint64_t workspace_bytes = 0;  ///< Of the stage.
};

/// What a layer computes anew for its backward pass instead of keeping it in the slot.
enum class Recompute : std::uint8_t {
  none,
  /// Norms, attention and activation functions; the results of products with weights are kept
  /// (compare Korthikanti et al. 2022, section 5).
  selective,
  full,  ///< Everything but the input of the layer (Chen et al. 2016).
};

/// As they are written in files, by value.
inline constexpr std::array<std::string_view, 3> recompute_names{"none", "selective", "full"};

/// What the calls of a stage depend on besides model and layers.
struct GraphOptions {
  std::uint32_t microbatch_size = 1;
  bool trains = true;
  bool splits_backward = false;
  Recompute recompute = Recompute::none;
  Shard shard{};
};

/// The graph of a stage. Values begin at multiples of `tensor_alignment_bytes`.
[[nodiscard]] StageGraph graph_of(const ModelSpec& model, const StageSpec& stage,
                                  const GraphOptions& options);

/// Of one shard.
[[nodiscard]] PassFlops flops_of(const ModelSpec& model, const StageSpec& stage,
                                 std::uint32_t microbatch_size, const Shard& shard = {});

/// Floats that shards tell each other of each row of logits.
inline constexpr std::uint32_t word_statistics_count = 3;

/// Tensors begin at multiples of this many bytes: a cache line, the widest vector.
inline constexpr std::uint64_t tensor_alignment_bytes = 64;

/// `size_bytes`, rounded up to whole alignments.
[[nodiscard]] constexpr std::uint64_t padded(std::uint64_t size_bytes) noexcept {
  return (size_bytes + tensor_alignment_bytes - 1) / tensor_alignment_bytes
         * tensor_alignment_bytes;
}

}  // namespace troupe
