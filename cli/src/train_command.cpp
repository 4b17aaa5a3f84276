#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <csignal>
#include <numeric>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "troupe/actors/trainer.hpp"
#include "troupe/engine/measured_costs.hpp"
#include "troupe/stages/cpu_device.hpp"
#include "troupe/storage/metrics.hpp"
#include "troupe/storage/output_folder.hpp"
#include "troupe/transport/secret.hpp"

#include "classification_report.hpp"
#include "commands.hpp"
#include "corpus_batches.hpp"
#include "counted.hpp"
#include "model_weights.hpp"
#include "performers.hpp"
#include "progress.hpp"
#include "recorded_steps.hpp"
#include "run_inputs.hpp"
#include "shared_secret.hpp"
#include "step_pictures.hpp"
#include "text_generator.hpp"

namespace troupe::cli {

namespace {

using actors::StepReport;
using actors::Trainer;

// What a run leaves in its folder.
constexpr std::string_view config_name = "config.toml";
constexpr std::string_view metrics_name = "metrics.jsonl";
constexpr std::string_view weights_name = "weights.safetensors";
constexpr std::string_view trace_name = "trace.json";
constexpr std::string_view picture_name = "timeline.svg";
constexpr std::string_view classes_name = "classes.json";
constexpr std::array result_names{config_name,         metrics_name, weights_name, trace_name,
                                  recorded_steps_name, picture_name, classes_name};

/// The signal that asked the run to stop, or 0.
std::atomic<int> stop_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler writes it");

/// The first of SIGINT and SIGTERM asks the run to stop after the step; the second ends the process
/// as usual.
void listen_for_signals() {
  const auto stop = [](int signal) {
    stop_signal = signal;
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
  };
  std::signal(SIGINT, stop);
  std::signal(SIGTERM, stop);
}

double seconds_of(const StepReport& report) {
  return static_cast<double>(report.end_ns - report.begin_ns) / 1e9;
}

/// Share of each cause in the time of all actors, by cause.
std::array<double, time_cause_count> time_shares(const StepReport& report) {
  std::array<double, time_cause_count> shares{};
  double total = 0.0;
  for (const auto& rank : report.ranks) {
    for (std::size_t cause = 0; cause < time_cause_count; ++cause) {
      shares[cause] += static_cast<double>(rank.account.ns[cause]);
    }
    total += static_cast<double>(rank.account.total_ns());
  }
  for (auto& share : shares) share = total > 0.0 ? share / total : 0.0;
  return shares;
}

/// How the model does on what is held out.
struct Validation {
  double loss = 0.0;                     ///< Mean over the targets.
  std::optional<ClassCounts> classes{};  ///< Of a model that classifies.
};

/// Everything `troupe train` holds while it trains.
class TrainingRun {
public:
  [[nodiscard]] static Expected<std::unique_ptr<TrainingRun>> make(const Plan& plan,
                                                                   const PerformerArguments& who) {
    if (who.node_count == 0 && who.launch.is_alone()) {
      const auto process_count = std::max(1U, who.process_count);
      if (auto fits = check_memory(plan, process_count); !fits) return fits.error();
    }
    auto batches = CorpusBatches::open(plan);
    if (!batches) return batches.error();
    auto performers = Performers::make(who, plan);
    if (!performers) return performers.error();
    auto run = std::unique_ptr<TrainingRun>{
        new TrainingRun{plan, std::move(*batches), std::move(*performers)}};
    auto trainer = run->performers_->make_trainer(plan, run->batches_);
    if (!trainer) return trainer.error();
    run->trainer_ = std::move(*trainer);
    if (auto opened = run->open_output(); !opened) return opened.error();
    return run;
  }

  [[nodiscard]] Expected<ExitCode> run() {
    if (auto measured = measure_light(); !measured) return measured.error();
    if (batches_->labelled() != nullptr) print_texts(*batches_->labelled());
    listen_for_signals();
    const auto step_count = plan_.config.train.steps;
    {
      ProgressLine progress;
      for (std::uint32_t step = 1; step <= step_count && stop_signal == 0; ++step) {
        if (auto done = train_step(progress); !done) return give_up(done.error());
      }
      if (stop_signal != 0) {
        progress.print(fmt::format("interrupted: step {} is finished, writing what there is",
                                   recorded_.steps.empty() ? 0 : recorded_.steps.back().step));
      }
    }
    if (auto written = write_results(); !written) return written.error();
    if (stop_signal == 0) return exit_success;
    return stop_signal == SIGTERM ? exit_terminated : exit_interrupted;
  }

private:
  /// A run that diverged has not applied the step that did: what was learned before is kept.
  [[nodiscard]] Error give_up(Error error) {
    if (error.code != Errc::diverged) return error;
    const auto path = folder_->path_of(weights_name);
    auto written = write_weights(path, *trainer_, class_names());
    error.context += written ? "; the weights before it are in " + path
                             : "; and the weights are lost: " + written.error().context;
    return error;
  }

  TrainingRun(const Plan& plan, std::shared_ptr<const CorpusBatches> batches,
              std::unique_ptr<Performers> performers)
      : plan_{plan},
        batches_{std::move(batches)},
        performers_{std::move(performers)},
        recorded_{plan.training, {}},
        costs_{plan.training.stage_count()} {}

  /// The first thing that is written, when nothing else can refuse any more. What an earlier run
  /// left goes out of the way first: should this run fail, no file of that one stands beside its.
  [[nodiscard]] Expected<Done> open_output() {
    auto folder = storage::OutputFolder::open(plan_.config.run.output);
    if (!folder) return folder.error();
    folder_ = std::move(*folder);
    const auto earlier = folder_->set_aside(result_names);
    if (!earlier) return earlier.error();
    if (*earlier) fmt::print("the earlier run in {} is now in {}\n", folder_->path(), **earlier);
    if (auto written = folder_->write(config_name, to_toml(plan_.config)); !written) return written;
    auto log = storage::MetricLog::create(folder_->path_of(metrics_name));
    if (!log) return log.error();
    log_ = std::move(*log);
    return Done{};
  }

  [[nodiscard]] Expected<Done> measure_light() {
    const auto measured = trainer_->measure_peak_flops();
    if (!measured) return measured.error();
    light_flops_ = *measured;
    const auto core_count = concurrent_streams(plan_) * plan_.config.run.threads_per_stage;
    const auto& [data, tensor, pipeline] = plan_.config.parallel;
    fmt::print("{} ({} x {}{}){}, {}, {} per step; light: {:.0f} GFLOP/s on {}\n",
               counted(plan_.config.parallel.rank_count(), "actor"), counted(data, "replica"),
               tensor == 1 ? "" : fmt::format("{} shards x ", to_string(tensor)),
               counted(pipeline, "pipeline rank"),
               plan_.has_servers() ? " and their parameter servers" : "", plan_.training.name,
               counted(plan_.tokens_per_step(), "token"), light_flops_ / 1e9,
               counted(core_count, "core"));
    return Done{};
  }

  /// Of a model that classifies, else none.
  [[nodiscard]] std::vector<std::string> class_names() const {
    const auto* labelled = batches_->labelled();
    return labelled == nullptr ? std::vector<std::string>{} : labelled->corpus().class_names();
  }

  void print_texts(const LabelledBatches& batches) const {
    const auto& corpus = batches.corpus();
    fmt::print("{} of {} to train on, {} held out", counted(corpus.training().size(), "text"),
               counted(corpus.class_names().size(), "class"), corpus.validation().size());
    if (const auto cut = batches.cut_count(); cut > 0) {
      fmt::print("; {} {} cut to the {} that model.sequence has room for", cut,
                 cut == 1 ? "is" : "are", counted(plan_.config.model.sequence - 1, "byte"));
    }
    fmt::print("\n");
  }

  [[nodiscard]] Expected<Done> train_step(ProgressLine& progress) {
    auto report = trainer_->train_step();
    if (!report) return report.error();
    observe(*report);
    std::optional<Validation> validation;
    const auto& train = plan_.config.train;
    const bool is_last = report->step == train.steps || stop_signal != 0;
    if (batches_->validates() && (is_last || report->step % train.validation_interval == 0)) {
      auto found = validate_model(is_last);
      if (!found) return found.error();
      validation = std::move(*found);
    }
    if (auto logged = log(*report, validation); !logged) return logged;
    progress.show(facts_of(*report));
    if (report->is_skipped) {
      progress.print(
          fmt::format("step {}: gradients overflow with the loss scaled by {}; the weights stay as "
                      "they are, and the scale is halved",
                      report->step, report->loss_scale));
    }
    if (validation) progress.print(describe(report->step, *validation));
    if (validation && validation->classes && is_last) {
      report_ = ClassificationReport{report->step, validation->loss, class_names(),
                                     std::move(*validation->classes)};
    }
    auto& steps = recorded_.steps;
    if (steps.size() == recorded_steps_max) steps.erase(steps.begin());
    steps.push_back(report->of_first_shards());
    return Done{};
  }

  /// Predicts the step from what passes took in the steps before it, the first from itself; then
  /// learns what they took in this one. What is twenty steps old hardly counts.
  void observe(const StepReport& report) {
    constexpr double share = 0.8;
    if (costs_.is_complete()) predicted_ = simulate(plan_.training, costs_.costs());
    costs_.fade(share);
    for (const auto& rank : report.ranks) {
      for (const auto& entry : rank.trace) {
        if (entry.kind != actors::TraceEntry::Kind::pass) continue;
        costs_.add(entry.action, entry.end_ns - entry.begin_ns);
      }
    }
    if (predicted_.ranks.empty() && costs_.is_complete()) {
      predicted_ = simulate(plan_.training, costs_.costs());
    }
    training_seconds_ += seconds_of(report);
  }

  /// Over `train.validation_batches` of what is held out. The last validation of a model that
  /// classifies is over all of it.
  [[nodiscard]] Expected<Validation> validate_model(bool is_last) {
    const auto* const labelled = batches_->labelled();
    auto batch_count = plan_.config.train.validation_batches;
    Validation validation;
    if (labelled != nullptr) {
      const auto all = labelled->validation_batch_count();
      batch_count = is_last ? all : std::min(batch_count, all);
      validation.classes.emplace(plan_.config.model.classes);
    }
    double loss = 0.0;
    double target_count = 0.0;
    for (std::uint32_t batch = 1; batch <= batch_count; ++batch) {
      const auto report = trainer_->evaluate_step(batch);
      if (!report) return report.error();
      loss += report->loss * report->target_count;
      target_count += report->target_count;
      if (labelled == nullptr) continue;
      const auto texts = labelled->validation_texts(batch);
      for (std::size_t i = 0; i < texts.size(); ++i) {
        validation.classes->add(texts[i].label, static_cast<std::uint32_t>(report->predictions[i]));
      }
    }
    validation.loss = loss / target_count;
    return validation;
  }

  static std::string describe(std::uint32_t step, const Validation& validation) {
    const auto text = fmt::format("step {}: validation loss {:.4f}, ", step, validation.loss);
    if (!validation.classes)
      return text + fmt::format("perplexity {:.2f}", std::exp(validation.loss));
    return text + fmt::format("accuracy {:.4f}", validation.classes->accuracy());
  }

  [[nodiscard]] double tokens_per_second(const StepReport& report) const {
    return plan_.tokens_per_step() / seconds_of(report);
  }
  [[nodiscard]] double speed_of_light(const StepReport& report) const {
    return plan_.flops_per_step() / seconds_of(report) / light_flops_;
  }

  [[nodiscard]] ProgressFacts facts_of(const StepReport& report) const {
    const auto step_count = plan_.config.train.steps;
    return {.step = report.step,
            .step_count = step_count,
            .loss = report.loss,
            .tokens_per_second = tokens_per_second(report),
            .speed_of_light = speed_of_light(report),
            .bubble_measured = report.bubble_fraction(),
            .bubble_predicted = predicted_.bubble_of_total(),
            .seconds_left = training_seconds_ / report.step * (step_count - report.step)};
  }

  [[nodiscard]] Expected<Done> log(const StepReport& report,
                                   const std::optional<Validation>& validation) {
    std::vector<storage::Metric> metrics{{"step", std::uint64_t{report.step}},
                                         {"loss", report.loss},
                                         {"learning_rate", report.learning_rate},
                                         {"grad_norm", report.gradient_norm},
                                         {"tokens_per_second", tokens_per_second(report)},
                                         {"speed_of_light", speed_of_light(report)},
                                         {"bubble_measured", report.bubble_fraction()},
                                         {"bubble_predicted", predicted_.bubble_of_total()},
                                         {"seconds", seconds_of(report)}};
    if (plan_.config.train.precision == Precision::fp16) {
      metrics.push_back({"loss_scale", report.loss_scale});
      metrics.push_back({"skipped", std::uint64_t{report.is_skipped}});
    }
    const auto shares = time_shares(report);
    for (std::size_t cause = 0; cause < time_cause_count; ++cause) {
      metrics.push_back({time_share_names()[cause], shares[cause]});
    }
    if (validation) {
      metrics.push_back({"validation_loss", validation->loss});
      if (const auto& classes = validation->classes) {
        metrics.push_back({"validation_accuracy", classes->accuracy()});
        metrics.push_back({"validation_macro_precision", classes->macro_precision()});
        metrics.push_back({"validation_macro_recall", classes->macro_recall()});
        metrics.push_back({"validation_macro_f1", classes->macro_f1()});
      } else {
        metrics.push_back({"validation_perplexity", std::exp(validation->loss)});
      }
    }
    return log_->append(metrics);
  }

  /// "time_" and the name of each cause.
  static const std::array<std::string, time_cause_count>& time_share_names() {
    static const auto names = [] {
      std::array<std::string, time_cause_count> result;
      for (std::size_t cause = 0; cause < time_cause_count; ++cause) {
        result[cause] = fmt::format("time_{}", to_string(static_cast<TimeCause>(cause)));
      }
      return result;
    }();
    return names;
  }

  [[nodiscard]] Expected<Done> write_results() {
    const auto weights = folder_->path_of(weights_name);
    auto written = write_weights(weights, *trainer_, class_names());
    if (!written) return written;
    trainer_.reset();  // Its memory is not needed any more, and what follows needs some.
    if (!recorded_.steps.empty()) {
      const auto& last = recorded_.steps.back();
      auto trace = folder_->write(trace_name, to_chrome_trace(plan_.training, last));
      if (!trace) return trace;
      auto steps = folder_->write(recorded_steps_name, to_jsonl(recorded_));
      if (!steps) return steps;
      const auto pictures =
          pictures_of(plan_.training, last, predicted_, "each pass as long as in the steps before");
      auto picture = folder_->write(picture_name, draw_svg(pictures));
      if (!picture) return picture;
    }
    // A BERT continues no texts.
    if (plan_.config.model.family != Family::bert) {
      if (auto sample = write_sample(weights); !sample) return sample;
    }
    if (report_) {
      auto classes = folder_->write(classes_name, to_json(*report_));
      if (!classes) return classes;
      fmt::print("\n{}", to_table(*report_));
    }
    fmt::print(
        "\nweights   {}\nmetrics   {}\npicture   {}\ntrace     {}\nsteps     {}\nas run    {}\n",
        weights, folder_->path_of(metrics_name), folder_->path_of(picture_name),
        folder_->path_of(trace_name), folder_->path_of(recorded_steps_name),
        folder_->path_of(config_name));
    if (report_) fmt::print("classes   {}\n", folder_->path_of(classes_name));
    return Done{};
  }

  /// Lets the model that was written continue the first words of what was held out from it.
  [[nodiscard]] Expected<Done> write_sample(const std::string& weights) {
    // A token costs a forward pass over the context: a short one is enough to see what was learned.
    constexpr std::uint32_t context_max = 64;
    auto model = plan_.config.model;
    model.sequence = std::min(model.sequence, context_max);
    const auto device = stages::make_cpu_device();
    auto generator = TextGenerator::make(*device, model, 1);
    if (!generator) return generator.error();
    const auto file = storage::SafetensorsFile::open(weights);
    if (!file) return file.error();
    auto loaded = load_weights(*file, weights, generator->stage());
    if (!loaded) return loaded;

    constexpr std::uint32_t prompt_length = 32;
    constexpr std::uint32_t sample_length = 240;
    const auto& corpus = batches_->text()->corpus();
    const auto text =
        corpus.validation().token_count() > prompt_length ? corpus.validation() : corpus.training();
    std::vector<std::int32_t> tokens(std::min<std::uint64_t>(prompt_length, text.token_count()));
    text.copy(0, tokens);
    std::string prompt;
    for (const auto token : tokens) prompt.push_back(static_cast<char>(token));
    const auto sample = generator->continue_text(prompt, sample_length, {});
    fmt::print("\nthe model continues \"{}\":\n\n{}\n", printable(prompt), printable(sample));
    return Done{};
  }

  Plan plan_;
  std::shared_ptr<const CorpusBatches> batches_;
  std::unique_ptr<Performers> performers_;
  std::optional<storage::OutputFolder> folder_;
  std::optional<storage::MetricLog> log_;
  RecordedSteps recorded_;                      ///< The last ones.
  std::optional<ClassificationReport> report_;  ///< Of all that is held out, at the end.
  MeasuredCosts costs_;
  double light_flops_ = 1.0;
  Timeline predicted_;
  double training_seconds_ = 0.0;
  std::unique_ptr<Trainer> trainer_;
};

/// What the environment says of this process, and `--listen`, if it is given.
Expected<Launch> launch_of(const PerformerArguments& performers) {
  std::optional<Endpoint> listen;
  if (!performers.listen.empty()) {
    auto parsed = parse_endpoint("--listen", performers.listen);
    if (!parsed) return parsed.error();
    listen = std::move(*parsed);
  }
  return find_launch(process_environment(), listen);
}

/// A task of a launcher other than the first.
Expected<ExitCode> join_task_0(const PerformerArguments& performers, const Plan& plan) {
  const auto& launch = performers.launch;
  auto secret =
      performers.secret_path.empty() ? await_shared_secret(
          shared_secret_path(plan.config.run.output, launch.run_name), shared_secret_patience)
                                     : transport::read_secret(performers.secret_path);
  if (!secret) return secret.error();
  return node({.join = to_string(launch.director),
               .secret_path = {},
               .secret = std::move(*secret),
               .tls = performers.tls,
               .network_interface = performers.network_interface,
               .shared_memory = performers.shared_memory,
               .heartbeat_seconds = performers.heartbeat_seconds});
}

}  // namespace

Expected<ExitCode> train(const RunArguments& arguments) {
  auto plan = load_plan(arguments);
  if (!plan) return plan.error();
  if (auto can = check_device(*plan); !can) return can.error();
  auto performers = arguments.performers;
  auto launch = launch_of(performers);
  if (!launch) return launch.error();
  performers.launch = std::move(*launch);
  if (auto good = Performers::check(performers, *plan); !good) return good.error();
  if (performers.launch.task > 0) return join_task_0(performers, *plan);
  auto run = TrainingRun::make(*plan, performers);
  if (!run) return run.error();
  return (*run)->run();
}

}  // namespace troupe::cli
