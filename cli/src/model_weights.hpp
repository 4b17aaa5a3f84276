// cli/src/model_weights.hpp -- a model's parameters as a safetensors file.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/engine/model_spec.hpp"
#include "troupe/stages/stage.hpp"
#include "troupe/storage/safetensors.hpp"

namespace troupe::cli {

/// Writes the parameters under Hugging Face's names, complete or not at all. The metadata say what
/// the shapes do not. Equal bits make an equal file, whatever grid they come from.
/// @param class_names of a model that classifies, else none.
[[nodiscard]] Expected<Done> write_weights(const std::string& path, actors::Trainer& trainer,
                                           std::span<const std::string> class_names);

/// The model of a weights file, from its metadata and its shapes.
/// @param heads for files without metadata; 0 if not known.
/// @returns `invalid_file` naming what is missing or does not fit.
[[nodiscard]] Expected<ModelSpec> model_of(const storage::SafetensorsFile& file,
                                           const std::string& path, std::uint32_t heads);

/// What the classes of a weights file are called, each differently; "class 0" and so on where it
/// does not say.
/// @returns `invalid_file` if it says it for another number of classes, or not as `write_weights`.
[[nodiscard]] Expected<std::vector<std::string>> class_names_of(
    const storage::SafetensorsFile& file, const std::string& path, std::uint32_t class_count);

/// Copies the file's tensors into the parameters of `stage`. A model with a shorter context takes
/// the first rows of the positions.
/// @returns `invalid_file` naming a tensor that is missing, or not of 32-bit floats in the shape
///          expected.
[[nodiscard]] Expected<Done> load_weights(const storage::SafetensorsFile& file,
                                          const std::string& path, stages::Stage& stage);

}  // namespace troupe::cli
