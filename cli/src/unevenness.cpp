#include "unevenness.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <utility>

#include "mean.hpp"

namespace troupe::cli {

namespace {

/// As many rows as a profile keeps, whose columns again have the mean 1.
std::vector<std::vector<double>> thinned(std::vector<std::vector<double>> rows) {
  constexpr std::size_t rows_max = 256;
  const auto stride = (rows.size() + rows_max - 1) / rows_max;
  std::vector<std::vector<double>> kept;
  std::vector<Mean> columns;
  for (std::size_t i = 0; i < rows.size(); i += stride) {
    columns.resize(std::max(columns.size(), rows[i].size()));
    for (std::size_t column = 0; column < rows[i].size(); ++column) {
      columns[column].add(rows[i][column]);
    }
    kept.push_back(std::move(rows[i]));
  }
  for (auto& row : kept) {
    for (std::size_t column = 0; column < row.size(); ++column) {
      row[column] = std::min(row[column] / columns[column].value(), Unevenness::slowdown_max);
    }
  }
  return kept;
}

/// A pass, and by what factor it took longer than such passes of that actor in that step.
struct UnevenPass {
  TimedPass pass;
  double factor;
};

double factor_of(const TimedPass& pass) {
  return static_cast<double>(pass.end_ns - pass.begin_ns) / pass.usual_ns;
}

double slowdown_of(const std::vector<TimedPass>& passes) {
  Mean slowdown;
  for (const auto& pass : passes) slowdown.add(factor_of(pass), pass.usual_ns);
  return slowdown.value();
}

/// What `others` show while `pass` runs, or nothing if they stand still for much of that time.
std::optional<double> factor_beside(const TimedPass& pass, const std::vector<UnevenPass>& others) {
  constexpr double most = 0.9;
  Mean factor;
  for (const auto& other : others) {
    const auto both_ns =
        std::min(pass.end_ns, other.pass.end_ns) - std::max(pass.begin_ns, other.pass.begin_ns);
    if (both_ns > 0) factor.add(other.factor, static_cast<double>(both_ns));
  }
  if (factor.weight() < most * static_cast<double>(pass.end_ns - pass.begin_ns)) return {};
  return factor.value();
}

/// Adds the squares of what the factors of `passes` have for themselves: what hits the whole
/// machine makes no rank wait. Two values that share nothing differ by twice the variance of each.
void add_unshared(const std::vector<UnevenPass>& passes, const std::vector<UnevenPass>& others,
                  Mean& squares) {
  for (const auto& [pass, factor] : passes) {
    const auto beside = factor_beside(pass, others);
    if (!beside) continue;
    const auto difference = factor - *beside;
    squares.add(difference * difference / 2.0, pass.usual_ns);
  }
}

}  // namespace

Unevenness unevenness_of(const std::vector<StepPasses>& steps) {
  std::vector<std::vector<double>> slowdowns;
  Mean squares;
  for (const auto& step : steps) {
    auto& of_step = slowdowns.emplace_back();
    std::vector<std::vector<UnevenPass>> actors;
    for (const auto& passes : step) {
      of_step.push_back(slowdown_of(passes));
      auto& actor = actors.emplace_back();
      for (const auto& pass : passes) actor.push_back({pass, factor_of(pass) / of_step.back()});
    }
    for (const auto& actor : actors) {
      for (const auto& others : actors) {
        if (&actor != &others) add_unshared(actor, others, squares);
      }
    }
  }
  return {.slowdowns = thinned(std::move(slowdowns)),
          .pass_spread = std::min(std::sqrt(squares.value()), Unevenness::pass_spread_max)};
}

}  // namespace troupe::cli
