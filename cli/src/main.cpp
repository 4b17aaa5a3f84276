#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "troupe/engine/schedule_generators.hpp"

#include "commands.hpp"

namespace {

using namespace troupe;
using namespace troupe::cli;

constexpr const char* description =
    "Trains transformer language models with a grid of actors: data x tensor x pipeline.";

constexpr const char* footer =
    "Exit codes: 0 done; 1 the run failed; 2 the command line, a configuration or a file is\n"
    "not what it must be, or cannot be written: no file is left half-written; 130 interrupted,\n"
    "143 terminated: the step was finished and the weights are written.";

void add_run_options(CLI::App& command, RunArguments& arguments) {
  command.add_option("CONFIG", arguments.config_path, "The configuration, a TOML file");
  command
      .add_option("--set", arguments.overrides,
                  "Overrides of the configuration, for example train.steps=10 run.output=runs/a")
      ->type_name("KEY=VALUE");
}

/// `--set` takes as many values as follow it, the configuration's path among them when it comes
/// last.
void find_config(RunArguments& arguments) {
  auto& overrides = arguments.overrides;
  if (arguments.config_path.empty() && !overrides.empty()
      && overrides.back().find('=') == std::string::npos) {
    arguments.config_path = overrides.back();
    overrides.pop_back();
  }
  if (arguments.config_path.empty()) throw CLI::RequiredError("CONFIG");
}

/// The command that was asked for, ready to run.
using Command = std::function<Expected<ExitCode>()>;

void add_link_options(CLI::App& command, std::string& network_interface, bool& shared_memory) {
  command.add_option(
      "--interface", network_interface,
      "The network interface that activations and gradients travel over; without it, "
      "the one that leads to the director");
  command.add_flag("!--no-shared-memory", shared_memory,
                   "Use TCP also between processes of one machine");
}

void add_network_options(CLI::App& command, std::string& network_interface, bool& shared_memory,
                         double& heartbeat_seconds) {
  add_link_options(command, network_interface, shared_memory);
  command
      .add_option("--heartbeat", heartbeat_seconds,
                  "Seconds of silence after which a process counts as lost; the same everywhere")
      ->check(CLI::Range(0.2, 3600.0))
      ->capture_default_str();
}

void add_process_count(CLI::App& command, std::uint32_t& process_count, CLI::Option* profile) {
  command
      .add_option("--processes", process_count,
                  "Over how many processes of one machine `troupe train` spreads the actors")
      ->needs(profile)
      ->capture_default_str();
}

void add_tls_options(CLI::App& command, transport::TlsFiles& tls) {
  command
      .add_option("--tls-certificate", tls.certificate_path,
                  "Encrypt what director and nodes say to each other: the certificate of this "
                  "machine, in PEM form; needs the other two")
      ->type_name("FILE");
  command.add_option("--tls-key", tls.key_path, "The certificate's key, for its owner alone")
      ->type_name("FILE");
  command
      .add_option("--tls-authority", tls.authority_path,
                  "The certificate of who issued all certificates of the run")
      ->type_name("FILE");
}

void add_train(CLI::App& app, RunArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand("train", "Train the model of a configuration");
  add_run_options(*command, arguments);
  command->footer(
      "Writes into the folder run.output: config.toml (as run), metrics.jsonl (an object per\n"
      "step), weights.safetensors, trace.json (Chrome trace format), steps.jsonl (the last steps, "
      "for\n"
      "`troupe compare`) and timeline.svg (a measured step beside the simulated one). What an "
      "earlier\n"
      "run left there first moves into the folder earlier-1, or the next free number. Ctrl-C\n"
      "finishes the step and writes everything.");
  auto& performers = arguments.performers;
  command->add_option("--processes", performers.process_count,
                      "Spread the ranks over so many processes of this machine");
  command->add_option(
      "--nodes", performers.node_count,
      "Wait for so many nodes, which `troupe node` starts, and spread the ranks over "
      "them");
  command->add_option("--listen", performers.listen, "Where nodes join, HOST:PORT");
  command->add_option("--secret", performers.secret_path,
                      "A file that only who may join can read, the same on every node");
  add_tls_options(*command, performers.tls);
  add_network_options(*command, performers.network_interface, performers.shared_memory,
                      performers.heartbeat_seconds);
  command->callback([&] {
    find_config(arguments);
    chosen = [&arguments] { return train(arguments); };
  });
}

void add_node(CLI::App& app, NodeArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand("node", "Offer this machine to the director of a run");
  command->add_option("--join", arguments.join, "Where the director listens, HOST:PORT")
      ->required();
  auto* secret = command->add_option("--secret", arguments.secret_path,
                                     "The file that the director has as well");
  auto* descriptor = command->add_option("--secret-fd", arguments.secret_descriptor,
                                         "An open file descriptor to read it from instead");
  secret->excludes(descriptor);
  add_tls_options(*command, arguments.tls);
  add_network_options(*command, arguments.network_interface, arguments.shared_memory,
                      arguments.heartbeat_seconds);
  command->footer(
      "Performs the ranks that the director gives it, until the run is over. Reads the corpus\n"
      "itself, under the path that the director names.");
  command->callback([&] {
    if (arguments.secret_path.empty() && arguments.secret_descriptor < 0) {
      throw CLI::RequiredError("--secret");
    }
    chosen = [&arguments] { return node(arguments); };
  });
}

void add_plan(CLI::App& app, PlanArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand(
      "plan", "Show what a configuration will do: grid, partition, bytes, step time, bubble");
  add_run_options(*command, arguments.run);
  auto* profile = command
                      ->add_option("--profile", arguments.profile_path,
                                   "What `troupe profile` has measured; this machine is measured "
                                   "otherwise, for a moment")
                      ->type_name("FILE");
  add_process_count(*command, arguments.process_count, profile);
  command->callback([&] {
    find_config(arguments.run);
    chosen = [&arguments] { return plan(arguments); };
  });
}

void add_schedule(CLI::App& app, ScheduleArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand("schedule", "Show a pipeline schedule");
  command
      ->add_option("NAME", arguments.name,
                   fmt::format("{}, or a .csv file as PyTorch's pipelining writes it",
                               fmt::join(schedule_names(), ", ")))
      ->required();
  command->add_option("--stages", arguments.ranks, "Pipeline ranks; a file brings its own");
  command->add_option("--microbatches", arguments.microbatches,
                      "Microbatches per step; a file brings its own");
  command->add_option("--chunks", arguments.chunks, "Virtual stages per rank")
      ->capture_default_str();
  command->add_flag("--split-backward", arguments.split_backward,
                    "Backward passes in two: I for the inputs, W for the weights");
  command->add_option("--slots-max", arguments.slots_max,
                      "Refuse it if a rank holds more sets of activations at once");
  command
      ->add_option("--matching", arguments.matching,
                   "How the sends and receives of a file find each other: by tag, as here, or in "
                   "the order of rows, as under NCCL")
      ->check(CLI::IsMember({"tagged", "ordered"}))
      ->capture_default_str();
  command->add_option("--counterexample", arguments.counterexample_path,
                      "Where to draw how far a refused file gets: as .svg, otherwise as text");
  command
      ->add_option("--format", arguments.format,
                   "How to show it; csv and csv-comms are the \"compute_only\" and "
                   "\"compute_comms\" of PyTorch's pipelining, the latter with sends and receives")
      ->check(CLI::IsMember({"grid", "csv", "csv-comms", "svg", "html"}))
      ->capture_default_str();
  command->footer(
      "The picture is simulated with F = I = W = 1 and links that take no time. html is a page to\n"
      "zoom into, in one file: troupe schedule 1f1b --stages 8 --microbatches 32 --format html "
      ">a.html");
  command->callback([&] { chosen = [&arguments] { return schedule(arguments); }; });
}

void add_profile(CLI::App& app, ProfileArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand(
      "profile", "Measure what the parts of a configuration's model take on this machine");
  add_run_options(*command, arguments.run);
  command->add_option("--out", arguments.out_path, "Where to write what `troupe simulate` reads")
      ->type_name("FILE")
      ->capture_default_str();
  command->add_option("--seconds", arguments.seconds, "How long to measure, about")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  add_link_options(*command, arguments.network_interface, arguments.shared_memory);
  command->footer(
      "Trains small models made of the configuration's parts, as many actors at once as it has or\n"
      "this machine has cores for, sums numbers as replicas do, and lets two processes exchange\n"
      "messages. Nothing else should run meanwhile. What was measured holds for every schedule,\n"
      "partition and number of microbatches, replicas and processes.");
  command->callback([&] {
    find_config(arguments.run);
    chosen = [&arguments] { return profile(arguments); };
  });
}

void add_simulate(CLI::App& app, SimulateArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand(
      "simulate", "Predict time, bubble and memory of schedules, without hardware");
  add_run_options(*command, arguments.run);
  auto* profile =
      command
          ->add_option("--profile", arguments.profile_path,
                       "What `troupe profile` has measured; needs a configuration, whose schedule, "
                       "stages and microbatches the options below replace")
          ->type_name("FILE");
  add_process_count(*command, arguments.process_count, profile);
  command
      ->add_option("--schedule", arguments.schedules,
                   "Names that `troupe schedule` knows, or .csv files; several with commas")
      ->delimiter(',');
  command->add_option("--stages", arguments.stages, "Pipeline ranks; several with commas")
      ->delimiter(',');
  command
      ->add_option("--microbatches", arguments.microbatches,
                   "Microbatches per step; several with commas")
      ->delimiter(',');
  command
      ->add_option("--costs", arguments.costs,
                   "What F, I and W of one virtual stage take, in any unit; B takes I + W")
      ->delimiter(',')
      ->expected(3)
      ->type_name("F,I,W")
      ->excludes(profile)
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--link", arguments.links,
                   "What a hop between two ranks takes, in that unit; several with commas")
      ->delimiter(',')
      ->excludes(profile)
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  const auto* const machine = "The machine";
  command
      ->add_option("--transfer", arguments.transfer,
                   "For how long a message occupies its way, in the unit of --costs; others queue "
                   "behind it")
      ->excludes(profile)
      ->check(CLI::NonNegativeNumber)
      ->group(machine);
  command
      ->add_option("--ranks-per-node", arguments.ranks_per_node,
                   "Ranks that share a network interface")
      ->check(CLI::PositiveNumber)
      ->group(machine);
  command
      ->add_flag("--no-overlap", arguments.no_overlap,
                 "No pass begins before the output of the one before has left its rank")
      ->group(machine);
  command->add_option("--replicas", arguments.replicas, "Copies of the pipeline that sum gradients")
      ->check(CLI::Range(1U, 1024U))
      ->excludes(profile)
      ->group(machine)
      ->capture_default_str();
  command
      ->add_option("--reduction", arguments.reduction,
                   "What summing the gradients of a stage over the replicas takes, in the unit of "
                   "--costs")
      ->excludes(profile)
      ->check(CLI::NonNegativeNumber)
      ->group(machine);
  command
      ->add_option("--straggler", arguments.stragglers,
                   "Passes of this rank take longer by this factor; several with commas. With "
                   "replicas, ranks of the second follow those of the first")
      ->delimiter(',')
      ->type_name("RANK:FACTOR")
      ->group(machine);
  command
      ->add_option("--jitter", arguments.jitter,
                   "How much passes and transfers vary: deviation over mean, lognormal")
      ->delimiter(',')
      ->expected(1, 2)
      ->check(CLI::Range(0.0, 3.0))
      ->type_name("PASS[,TRANSFER]")
      ->group(machine);
  command->add_option("--seed", arguments.seed, "What jitter is drawn from")->group(machine);
  command->add_option("--chunks", arguments.chunks, "Virtual stages per rank")
      ->capture_default_str();
  command->add_option("--memory-limit", arguments.memory_limit,
                      "Microbatches whose activations a rank may hold, for schedules that trade "
                      "memory for time; 0: as the schedule says");
  command->add_flag("--split-backward", arguments.split_backward,
                    "Backward passes in two: I for the inputs, W for the weights");
  auto* json = command->add_flag("--json", arguments.json,
                                 "Print an object for programs to read, or an array of several");
  command->add_flag("--csv", arguments.csv, "Print a table for programs to read")->excludes(json);
  command
      ->add_flag("--memory", arguments.memory,
                 "Add to the objects, by rank, when how many sets of activations are held")
      ->needs(json);
  command
      ->add_option("--svg", arguments.svg_path,
                   "Draw the step, or, of several, the bubble over what differs")
      ->type_name("FILE");
  command
      ->add_option("--trace", arguments.trace_path,
                   "Write the step in Chrome's trace format, with the activations that are held, "
                   "for Perfetto; one step alone")
      ->type_name("FILE");
  command->footer(
      "With several values, every combination is simulated. The bubble is idle time as a share of\n"
      "all time, and over the time of the work alone. Idle counts from 0 until the last rank is\n"
      "done, \"idle within\" from a rank's first pass to its last. Activations are counted in sets "
      "of\n"
      "one virtual stage and microbatch.");
  command->callback([&] {
    if (!arguments.profile_path.empty()) find_config(arguments.run);
    chosen = [&arguments] { return simulate(arguments); };
  });
}

void add_compare(CLI::App& app, CompareArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand(
      "compare", "Set a measured step against its simulation, and say where they part");
  command->add_option("RUN", arguments.run, "The folder that `troupe train` wrote")->required();
  command->add_option("--step", arguments.step,
                      "Which of the recorded steps, by number; without it, the last");
  command
      ->add_option("--passes", arguments.pass_count,
                   "How many passes to list, those furthest from the simulation first")
      ->capture_default_str();
  command->add_flag("--json", arguments.json, "Print an object for programs to read");
  command
      ->add_option("--svg", arguments.svg_path,
                   "Write a picture here: the measured step above the simulated one")
      ->type_name("FILE");
  command
      ->add_option("--html", arguments.html_path,
                   "Write a page here: the picture to zoom into, and what is printed")
      ->type_name("FILE");
  command->footer(
      "A run records its last 8 steps. In the simulation each pass takes as long as on average in\n"
      "them, so does the optimizer, and nothing else takes time. What the step took longer comes "
      "from\n"
      "uneven passes, links, the runtime and the reduction of gradients: from the end of the step "
      "it\n"
      "is followed back to its begin, from a rank that waited to the one that it waited for, and "
      "each\n"
      "nanosecond is booked where it was lost.");
  command->callback([&] { chosen = [&arguments] { return compare(arguments); }; });
}

void add_generate(CLI::App& app, GenerateArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand("generate", "Let a trained model write text");
  command->add_option("WEIGHTS", arguments.weights_path, "A weights.safetensors file")->required();
  command->add_option("--prompt", arguments.prompt, "What the text begins with")->required();
  command->add_option("--tokens", arguments.token_count, "How many tokens to write")
      ->capture_default_str();
  command
      ->add_option("--temperature", arguments.temperature,
                   "0: always the likeliest token; 1: as the model predicts")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  command->add_option("--seed", arguments.seed, "Of the random choices")->capture_default_str();
  command->add_option("--heads", arguments.heads,
                      "Attention heads, for weights without troupe's metadata");
  command->callback([&] { chosen = [&arguments] { return generate(arguments); }; });
}

void add_classify(CLI::App& app, ClassifyArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand("classify", "Let a trained model tell the classes of texts");
  command->add_option("WEIGHTS", arguments.weights_path, "A weights.safetensors file")->required();
  command->add_option("TEXTS", arguments.texts_path,
                      "A file with a text on every line; without it, what comes in");
  command->add_flag("--json", arguments.json,
                    "Print an object for each text, with the probability of every class");
  command->add_option("--heads", arguments.heads,
                      "Attention heads, for weights without troupe's metadata");
  command->footer(
      "Prints a table of tab-separated values: the likeliest class of each text, how probable the\n"
      "model holds it, and the text. A text is cut where the model's context ends.");
  command->callback([&] { chosen = [&arguments] { return classify(arguments); }; });
}

void add_doctor(CLI::App& app, DoctorArguments& arguments, Command& chosen) {
  auto* command = app.add_subcommand(
      "doctor", "Look whether this machine can run several processes, and how fast");
  add_link_options(*command, arguments.network_interface, arguments.shared_memory);
  command->add_flag("--json", arguments.json, "Print an object for programs to read");
  const std::string hidden;
  command->add_flag("--self-test", arguments.is_self_test)->group(hidden);
  command->add_option("--peer", arguments.peer)->group(hidden);
  command->footer(
      "Shows versions, processor, memory, networks, limits and the launcher's environment, and\n"
      "lets two processes exchange messages. What would make a run fail or slow stands behind\n"
      "\"attention\". Exit codes: 0 runs can work; 1 they cannot; 2 the command line is wrong.");
  command->callback([&] { chosen = [&arguments] { return doctor(arguments); }; });
}

int run(int argc, char** argv) {
  CLI::App app{description, "troupe"};
  app.require_subcommand(1);
  app.footer(footer);
  app.set_help_all_flag("--help-all", "Print the help of every command");
  app.set_version_flag("--version", TROUPE_VERSION);

  RunArguments run_arguments;
  NodeArguments node_arguments;
  ScheduleArguments schedule_arguments;
  PlanArguments plan_arguments;
  ProfileArguments profile_arguments;
  SimulateArguments simulate_arguments;
  CompareArguments compare_arguments;
  GenerateArguments generate_arguments;
  ClassifyArguments classify_arguments;
  DoctorArguments doctor_arguments;
  Command chosen;
  add_train(app, run_arguments, chosen);
  add_node(app, node_arguments, chosen);
  add_plan(app, plan_arguments, chosen);
  add_schedule(app, schedule_arguments, chosen);
  add_profile(app, profile_arguments, chosen);
  add_simulate(app, simulate_arguments, chosen);
  add_compare(app, compare_arguments, chosen);
  add_generate(app, generate_arguments, chosen);
  add_classify(app, classify_arguments, chosen);
  add_doctor(app, doctor_arguments, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "troupe: {}; see `troupe --help`\n", error.what());
    return exit_bad_input;
  }

  const auto outcome = chosen();
  if (outcome) return *outcome;
  fmt::print(stderr, "troupe: {}\n", outcome.error().context);
  return exit_code_of(outcome.error().code);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // A file size limit is a full disk: an error with a sentence.
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "troupe: {}\n", error.what());
    return exit_failure;
  }
}
