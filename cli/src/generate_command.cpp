#include <algorithm>
#include <thread>

#include <fmt/format.h>

#include "troupe/stages/cpu_device.hpp"

#include "commands.hpp"
#include "model_weights.hpp"
#include "text_generator.hpp"

namespace troupe::cli {

Expected<ExitCode> generate(const GenerateArguments& arguments) {
  if (arguments.prompt.empty()) {
    return Error{Errc::invalid_config, "--prompt is empty; give the text at least one character"};
  }
  const auto file = storage::SafetensorsFile::open(arguments.weights_path);
  if (!file) return file.error();
  const auto model = model_of(*file, arguments.weights_path, arguments.heads);
  if (!model) return model.error();
  if (model->family == Family::bert) {
    return Error{Errc::invalid_file,
                 fmt::format("{}: holds a BERT, which continues no texts{}", arguments.weights_path,
                             model->classifies() ? "; `troupe classify` tells their classes" : "")};
  }
  if (model->vocabulary < byte_count) {
    return Error{Errc::invalid_file,
                 fmt::format("{}: has {} tokens, but the tokenizer \"bytes\" has {}",
                             arguments.weights_path, model->vocabulary, byte_count)};
  }
  const auto device = stages::make_cpu_device();
  auto generator =
      TextGenerator::make(*device, *model, std::max(1U, std::thread::hardware_concurrency()));
  if (!generator) return generator.error();
  if (auto loaded = load_weights(*file, arguments.weights_path, generator->stage()); !loaded) {
    return loaded.error();
  }
  const auto text =
      generator->continue_text(arguments.prompt, arguments.token_count,
                               {.temperature = arguments.temperature, .seed = arguments.seed});
  fmt::print("{}\n", printable(text));
  return exit_success;
}

}  // namespace troupe::cli
