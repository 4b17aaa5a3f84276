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

namespace troupe {

struct ScheduleConfig {
  std::string name = "1f1b";           ///< gpipe, 1f1b, interleaved-1f1b, or a path ending in .csv.
  std::uint32_t microbatches = 8;      ///< Per replica and step.
  std::uint32_t microbatch_size = 4;   ///< Sequences.
  std::uint32_t chunks = 1;            ///< Virtual stages per pipeline rank.
  bool split_backward = false;         ///< I and W instead of B.
  std::vector<std::uint32_t> layers_per_stage;  ///< Explicit partition; empty: balanced by cost.
};

enum class OptimizerKind : std::uint8_t { adamw, sgd };

struct TrainConfig {
  std::uint32_t steps = 300;
  std::uint64_t seed = 1;
  OptimizerKind optimizer = OptimizerKind::adamw;
  double learning_rate = 1e-3;          ///< The peak, reached at the end of the warm-up.
  double min_learning_rate = 0.0;       ///< Where the cosine ends.
  std::uint32_t warmup_steps = 20;      ///< Linear from zero.
  double clip_norm = 1.0;               ///< Global norm bound; 0: no clipping.
  double weight_decay = 0.0;            ///< Decoupled for AdamW; only on matrices.
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double momentum = 0.9;                ///< SGD.
  std::uint32_t validation_interval = 100;  ///< Steps between validations; 0: never.
  std::uint32_t validation_batches = 4;     ///< Steps' worth of validation data per validation.
};

struct DataConfig {
  std::string text;                   ///< Path of the corpus.
  std::string tokenizer = "bytes";
  double validation_fraction = 0.05;  ///< The corpus' tail, held out.
};

struct RunConfig {
  std::string device = "cpu";
  std::uint32_t threads_per_stage = 1;
  std::string output = "runs/default";
};

struct Config {
  ModelSpec model;
  GridExtent parallel;
  ScheduleConfig schedule;
  TrainConfig train;
  DataConfig data;
  RunConfig run;
};

/// Reads a configuration in TOML.
///
/// @param source_name names the text in errors, usually a path.
/// @param overrides `key=value` with a dotted key, for example `train.steps=10`; applied in order over
///        the file's values. The value is TOML; a bare word is taken as a string.
/// @returns `invalid_config` with a sentence that names source, line and key, what was found and what
///          was expected; for an unknown key also the nearest known one.
[[nodiscard]] Expected<Config> parse_config(std::string_view text, std::string_view source_name,
                                            std::span<const std::string> overrides);

/// The configuration as TOML, every key written out; `parse_config` reads it back to an equal value.
[[nodiscard]] std::string to_toml(const Config& config);

/// Checks what the types cannot say: counts at least 1, hidden a multiple of heads, fractions within
/// their ranges, tensor = 1 as long as shards are not there.
[[nodiscard]] Expected<Done> validate(const Config& config);

/// The learning rate of `step`, counted from 1: linear warm-up, then a cosine to the minimum at the
/// last step.
[[nodiscard]] double learning_rate_at(const TrainConfig& train, std::uint32_t step);

}  // namespace troupe
