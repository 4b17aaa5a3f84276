#include "message_checks.hpp"

#include <algorithm>
#include <utility>

#include "troupe/engine/layer_builder.hpp"
#include "troupe/engine/loss_scaler.hpp"
#include "troupe/engine/schedule_text.hpp"

namespace troupe::actors {

namespace {

std::string number(std::uint64_t value) {
  return std::to_string(value);
}

std::string quoted(const std::string& text) {
  return '"' + text + '"';
}

Misfit misfit_of_rank(const Plan& plan, std::uint32_t rank) {
  const auto count = plan.rank_count();
  if (rank < count) return std::nullopt;
  return "rank " + number(rank) + " of " + number(count);
}

bool is_server(const Plan& plan, std::uint32_t rank) {
  return rank >= plan.config.parallel.rank_count();
}

bool fits(const Plan& plan, std::uint32_t grid_rank, const TraceEntry& entry) {
  const auto& action = entry.action;
  const auto rank = coordinate_of(plan.config.parallel, grid_rank).pipeline;
  if (entry.kind == TraceEntry::Kind::pass && is_server(plan, grid_rank)) return false;
  return entry.kind <= TraceEntry::Kind::optimize && action.pass <= Pass::backward_weight
         && action.stage.value() < plan.training.stage_count()
         && plan.training.rank_of_stage[action.stage.value()] == rank
         && action.microbatch.value() < plan.training.microbatch_count;
}

Misfit misfit_of_predictions(const std::vector<std::int32_t>& predictions, std::size_t count,
                             std::uint32_t class_count) {
  if (predictions.size() != count) {
    return number(predictions.size()) + " predictions from a rank that has " + number(count);
  }
  const auto is_none = [&](std::int32_t c) {
    return c < 0 || std::cmp_greater_equal(c, class_count);
  };
  const auto found = std::ranges::find_if(predictions, is_none);
  if (found == predictions.end()) return std::nullopt;
  return "class " + std::to_string(*found) + " of " + number(class_count);
}

constexpr const char* no_time = "a time that no clock shows";

/// Whether a clock shows first one, then the other.
bool is_span(std::int64_t begin_ns, std::int64_t end_ns) {
  return begin_ns >= 0 && end_ns >= begin_ns && end_ns <= clock_max_ns;
}

bool is_account(const TimeAccount& account) {
  return is_span(account.begin_ns, account.end_ns)
         && std::ranges::all_of(account.ns, [](auto ns) { return is_span(0, ns); });
}

}  // namespace

Misfit misfit_of(const ClockTold& message) {
  if (is_span(0, message.now_ns)) return std::nullopt;
  return no_time;
}

Misfit misfit_of(const Plan& plan, const StepWanted& message) {
  if (message.kind > StepKind::evaluation) return "a step of no kind";
  if (!is_loss_scale(message.loss_scale)) return "a step with a loss scale that is none";
  if (message.kind == StepKind::evaluation) return std::nullopt;
  const auto oldest = std::uint64_t{message.weights_of} + plan.config.train.staleness + 1;
  if (message.weights_of < message.step && message.step <= oldest) return std::nullopt;
  return "step " + number(message.step) + " on the weights of step " + number(message.weights_of);
}

Misfit misfit_of(const Plan& plan, StepKind kind, const StepReported& message) {
  if (auto misfit = misfit_of_rank(plan, message.rank)) return misfit;
  const auto rank = coordinate_of(plan.config.parallel, message.rank).pipeline;
  const auto stages = plan.training.stages_of(rank);
  const auto stage_count = stages.size();
  if (message.squares.size() != stage_count) {
    return "gradients of " + number(message.squares.size()) + " stages from a rank that holds "
           + number(stage_count);
  }
  const bool has_losses =
      !is_server(plan, message.rank) && std::ranges::any_of(stages, [&](StageIndex stage) {
        return plan.training.is_last(stage);
      });
  const auto loss_count = has_losses ? plan.training.microbatch_count : 0;
  if (message.losses.size() != loss_count) {
    return number(message.losses.size()) + " losses from a rank that has " + number(loss_count);
  }
  const auto& model = plan.config.model;
  const bool predicts = kind == StepKind::evaluation && model.classifies();
  return misfit_of_predictions(
      message.predictions,
      predicts ? std::size_t{loss_count} * plan.config.schedule.microbatch_size : 0, model.classes);
}

Misfit misfit_of(const Plan& plan, const RankFinished& message) {
  if (auto misfit = misfit_of_rank(plan, message.rank)) return misfit;
  const auto fits_plan = [&](const TraceEntry& entry) { return fits(plan, message.rank, entry); };
  if (!std::ranges::all_of(message.trace, fits_plan)) return "a pass that is not of the schedule";
  const auto has_span = [](const TraceEntry& entry) {
    constexpr auto day_ns = std::int64_t{86'400} * 1'000'000'000;
    return is_span(entry.begin_ns, entry.end_ns) && entry.end_ns - entry.begin_ns <= day_ns;
  };
  if (is_account(message.account) && std::ranges::all_of(message.trace, has_span)) {
    return std::nullopt;
  }
  return no_time;
}

Misfit misfit_of(const Plan& plan, const RankFailed& message) {
  if (auto misfit = misfit_of_rank(plan, message.rank)) return misfit;
  if (message.code > Errc::none && message.code <= Errc::internal) return std::nullopt;
  return "error code " + number(static_cast<std::uint8_t>(message.code));
}

Misfit misfit_of(const RanksReady& message, std::size_t rank_count) {
  if (message.code > Errc::internal) {
    return "error code " + number(static_cast<std::uint8_t>(message.code));
  }
  if (message.code != Errc::none) return std::nullopt;
  if (message.stages.size() != rank_count) {
    return number(message.stages.size()) + " stage actors for " + number(rank_count) + " ranks";
  }
  if (std::ranges::all_of(message.stages, [](const auto& stage) { return bool{stage}; })) {
    return std::nullopt;
  }
  return "a stage actor that leads nowhere";
}

Expected<Plan> plan_of(const RanksGiven& message,
                       const std::shared_ptr<const CustomLayer>& custom_layer) {
  auto config = parse_config(message.config, "the director's configuration", {});
  if (!config) return config.error();
  if (config->model.family == Family::custom) {
    if (custom_layer == nullptr) {
      return Error{Errc::invalid_config,
                   "the model is made of the layer " + quoted(message.custom_layer)
                       + ", and this node has none; set NodeOptions::custom_layer"};
    }
    config->model.custom_layer = custom_layer;
  }
  auto schedule = from_csv(message.schedule, "the director's schedule");
  if (!schedule) return schedule.error();
  auto plan = make_plan(*config, std::move(*schedule));
  if (!plan) return plan;
  const auto here = fingerprint_of_layer(plan->config.model);
  if (here != message.custom_layer) {
    return Error{Errc::invalid_config, "the model is made of the layer "
                                           + quoted(message.custom_layer) + ", but this node's is "
                                           + quoted(here) + "; give it the director's"};
  }
  const auto rank_count = plan->rank_count();
  const auto& placed = message.node_of_rank;
  const bool is_placed =
      placed.size() == rank_count && message.node < message.nodes.size()
      && std::ranges::all_of(placed, [&](auto node) { return node < message.nodes.size(); });
  if (is_placed) return plan;
  return Error{Errc::internal, "the director places " + number(placed.size()) + " of "
                                   + number(rank_count) + " ranks on "
                                   + number(message.nodes.size())
                                   + " nodes, or on others, which is a bug"};
}

}  // namespace troupe::actors
