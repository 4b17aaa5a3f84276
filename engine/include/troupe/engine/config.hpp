// troupe/engine/config.hpp -- what a person writes in a configuration file.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "troupe/engine/expected.hpp"
#include "troupe/engine/grid.hpp"
#include "troupe/engine/model_spec.hpp"
#include "troupe/engine/optimizer_sharding.hpp"
#include "troupe/engine/policy.hpp"
#include "troupe/engine/precision.hpp"
#include "troupe/engine/stage_graph.hpp"

namespace troupe {

/// Whether `schedule.name` is the path of a file rather than the name of a schedule.
[[nodiscard]] constexpr bool is_schedule_file(std::string_view name) noexcept {
  return name.ends_with(".csv");
}

struct ScheduleConfig {
  std::string name = "1f1b";          ///< One of `schedule_names`, or a path ending in .csv.
  std::uint32_t microbatches = 8;     ///< Per replica and step.
  std::uint32_t microbatch_size = 4;  ///< Sequences.
  std::uint32_t chunks = 1;           ///< Virtual stages per pipeline rank.
  bool split_backward = false;        ///< I and W instead of B.
  Policy policy = Policy::in_order;   ///< When a rank runs which of its passes.
  std::uint32_t memory_limit = 0;  ///< Microbatches in flight on a rank; 0: as the schedule says.
  std::string profile{};           ///< Path of what a searched schedule is made for; empty: unit
                                   ///< times.
  std::vector<std::uint32_t> layers_per_stage;  ///< Explicit partition; empty: balanced by cost.

  friend bool operator==(const ScheduleConfig&, const ScheduleConfig&) = default;
};

enum class OptimizerKind : std::uint8_t {
  adamw,
  sgd,
  adam,
  adafactor,  ///< Keeps sums over rows and columns alone; scales its steps to the weights.
};

/// What ranks keep in host memory while their device does not work on it.
enum class Offload : std::uint8_t {
  none,
  activations,  ///< What a microbatch leaves between its passes.
};

/// What the learning rate does after its warm-up, see `learning_rate_at`.
enum class LearningRateSchedule : std::uint8_t { cosine, linear, constant, inverse_sqrt };

struct TrainConfig {
  std::uint32_t steps = 300;
  std::uint64_t seed = 1;
  OptimizerKind optimizer = OptimizerKind::adamw;
  double learning_rate = 1e-3;  ///< The peak, reached at the end of the warm-up.
  LearningRateSchedule learning_rate_schedule = LearningRateSchedule::cosine;
  double min_learning_rate = 0.0;   ///< Where it ends.
  std::uint32_t warmup_steps = 20;  ///< Linear from zero.
  double clip_norm = 1.0;           ///< Global norm bound; 0: no clipping.
  double weight_decay = 0.0;        ///< Decoupled for AdamW and Adafactor; only on matrices.
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double momentum = 0.9;  ///< SGD.
  Precision precision = Precision::fp32;
  double loss_scale = 65'536.0;               ///< Of the first step in fp16: a power of two.
  std::uint32_t loss_scale_interval = 2'000;  ///< Updates until it doubles; 0: it never does.
  Synchronization synchronization = Synchronization::all_reduce;  ///< Of replicas.
  /// With servers: how many steps a replica may be ahead of the slowest.
  std::uint32_t staleness = 0;
  /// In what replicas exchange the gradients that they sum.
  WireFormat gradient_wire = WireFormat::fp32;
  Recompute recompute = Recompute::none;          ///< What backward passes compute anew.
  std::vector<std::uint32_t> recompute_stages{};  ///< Virtual stages that do; empty: all.
  Offload offload = Offload::none;                ///< Only for devices with memory of their own.
  bool sequence_parallel = false;  ///< Shards divide the rows of what lies between products.
  /// Who keeps the optimizer's state of what.
  OptimizerSharding optimizer_sharding = OptimizerSharding::none;
  /// Steps between validations, for which replicas wait that are ahead; 0: never.
  std::uint32_t validation_interval = 100;
  std::uint32_t validation_batches = 4;  ///< Steps' worth of validation data per validation.

  friend bool operator==(const TrainConfig&, const TrainConfig&) = default;
};

struct DataConfig {
  std::string text;  ///< Path of the corpus: a text, or a table of labelled texts.
  std::string tokenizer = "bytes";
  double validation_fraction = 0.05;  ///< Held out: the text's tail, or texts drawn by the seed.
  /// What the corpus must be, as `storage::Corpus::fingerprint` writes it; empty: anything. A
  /// director sets it for its nodes.
  std::string fingerprint{};

  friend bool operator==(const DataConfig&, const DataConfig&) = default;
};

struct RunConfig {
  std::string device = "cpu";
  std::uint32_t threads_per_stage = 1;
  std::string output = "runs/default";
  /// For experiments: microseconds by which what one rank sends to a neighbour comes later.
  std::uint32_t link_delay_us = 0;

  friend bool operator==(const RunConfig&, const RunConfig&) = default;
};

struct Config {
  ModelSpec model;
  GridExtent parallel;
  ScheduleConfig schedule;
  TrainConfig train;
  DataConfig data;
  RunConfig run;

  friend bool operator==(const Config&, const Config&) = default;
};

/// Reads a configuration in TOML. A key is the path of its field: `train.learning_rate` is
/// `Config::train.learning_rate`. Keys left out keep their defaults.
///
/// @param source_name names the text in errors, usually a path.
/// @param overrides `key=value` with a dotted key, for example `train.steps=10`; applied in order
///        over the file's values. The value is TOML; a bare word is taken as a string, and so is
///        any value of a key that holds one.
/// @returns `invalid_config` with a sentence that names source, line and key, what was found and
///          what was expected; for an unknown key also the nearest known one. An override is named
///          in place of source and line.
[[nodiscard]] Expected<Config> parse_config(std::string_view text, std::string_view source_name,
                                            std::span<const std::string> overrides);

/// The configuration as TOML, every key written out and numbers in full precision; `parse_config`
/// reads it back to an equal value if `validate` accepts it.
[[nodiscard]] std::string to_toml(const Config& config);

/// Checks what the types cannot say: every number in its range (`parse_config` checks the same
/// ranges), hidden a multiple of heads, a layer for each virtual stage, an equal part of each layer
/// for each shard, known names.
///
/// The ranges are generous and finite, so that sizes computed from an accepted configuration fit
/// 64 bits: at most 2^28 tokens per step over all replicas, 2^32 tokens per validation, 1,024
/// layers of 32,768 wide, 2^20 distinct tokens.
/// @returns `invalid_config` with the key, what it says and what would be accepted.
[[nodiscard]] Expected<Done> validate(const Config& config);

/// The learning rate of `step`, counted from 1. With s steps of which w warm up, from peak p to
/// minimum q, it is p step / w while step <= w, and then
///   cosine        q + (p - q) (1 + cos(pi (step - w) / (s - w))) / 2    until step = s, then q
///   linear        q + (p - q) (s - step) / (s - w)                      until step = s, then q
///   constant      p
///   inverse_sqrt  p sqrt(w / step), with w = 1 if nothing warms up, and not less than q
/// Cosine: Loshchilov & Hutter 2017, equation 5; inverse_sqrt: Vaswani et al. 2017, equation 3.
/// Finite for every step if the rates are.
[[nodiscard]] double learning_rate_at(const TrainConfig& train, std::uint32_t step);

}  // namespace troupe
