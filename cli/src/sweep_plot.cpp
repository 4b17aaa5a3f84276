#include "sweep_plot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "troupe/engine/draw.hpp"

namespace troupe::cli {

namespace {

/// Okabe and Ito's colours, which people of every colour vision tell apart; beyond them the marks
/// do.
constexpr std::array<std::string_view, 7> colours{"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                  "#E69F00", "#56B4E9", "#000000"};
constexpr double width = 900.0;
constexpr double height_min = 480.0;
constexpr double line_height = 18.0;
constexpr double left = 70.0;
constexpr double right = 240.0;  // The legend.
constexpr double top = 30.0;
constexpr double bottom = 60.0;

/// What can lie on the horizontal axis.
struct Axis {
  std::string_view name;
  double (*value)(const SweepPoint&);
};
constexpr std::array axes{
    Axis{"microbatches", [](const SweepPoint& p) { return static_cast<double>(p.microbatches); }},
    Axis{"stages", [](const SweepPoint& p) { return static_cast<double>(p.stages); }},
    Axis{"link", [](const SweepPoint& p) { return p.link; }},
};

std::set<double> values_of(std::span<const SweepPoint> points, const Axis& axis) {
  std::set<double> values;
  for (const auto& point : points) values.insert(axis.value(point));
  return values;
}

struct Line {
  std::string name;
  std::vector<std::pair<double, double>> points;  ///< Value on the axis, bubble.
};

std::vector<Line> lines_of(std::span<const SweepPoint> points, std::size_t along) {
  std::vector<Line> lines;
  for (const auto& point : points) {
    auto name = point.schedule;
    for (std::size_t a = 0; a < axes.size(); ++a) {
      if (a == along || values_of(points, axes[a]).size() == 1) continue;
      name += fmt::format(", {} {}", axes[a].name, axes[a].value(point));
    }
    auto line = std::ranges::find(lines, name, &Line::name);
    if (line == lines.end()) line = lines.insert(lines.end(), {name, {}});
    line->points.emplace_back(axes[along].value(point), point.bubble);
  }
  for (auto& line : lines) std::ranges::sort(line.points);
  return lines;
}

/// The least of 1, 2 and 5 times a power of ten that is not below `value`.
double rounded_up(double value) {
  const auto power = std::pow(10.0, std::floor(std::log10(value)));
  for (const auto step : {1.0, 2.0, 5.0}) {
    if (step * power >= value * (1.0 - 1e-9)) return step * power;
  }
  return 10.0 * power;
}

std::string mark(std::size_t line, double x, double y) {
  const auto colour = colours[line % colours.size()];
  switch (line / colours.size() % 3) {
    case 0:
      return fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n", x, y,
                         colour);
    case 1:
      return fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"8\" height=\"8\" fill=\"{}\"/>\n",
                         x - 4.0, y - 4.0, colour);
    default:
      return fmt::format("<path d=\"M{:.1f},{:.1f} l5,9 h-10 z\" fill=\"{}\"/>\n", x, y - 5.0,
                         colour);
  }
}

std::string text_at(double x, double y, std::string_view anchor, std::string_view text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     escaped(text));
}

}  // namespace

std::string plot_sweep(std::span<const SweepPoint> points) {
  std::size_t along = 0;
  for (std::size_t a = 1; a < axes.size(); ++a) {
    if (values_of(points, axes[a]).size() > values_of(points, axes[along]).size()) along = a;
  }
  const auto lines = lines_of(points, along);
  const auto values = values_of(points, axes[along]);
  const auto height =
      std::max(height_min, top + line_height * static_cast<double>(lines.size()) + bottom);
  const auto most = std::ranges::max_element(points, {}, &SweepPoint::bubble)->bubble;
  const auto step = rounded_up(std::max(most, 0.01) / 5.0);
  const auto bubble_max = std::ceil(most / step + 1e-9) * step;
  const auto span = std::max(*values.rbegin() - *values.begin(), 1e-9);
  const auto x_of = [&](double value) {
    return left + (value - *values.begin()) / span * (width - left - right);
  };
  const auto y_of = [&](double bubble) {
    return height - bottom - bubble / bubble_max * (height - top - bottom);
  };

  auto svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" font-family=\"sans-serif\" font-size=\"13\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height);
  for (auto bubble = 0.0; bubble <= bubble_max + step / 2.0; bubble += step) {
    svg += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#ccc\"/>\n", left,
        y_of(bubble), width - right, y_of(bubble));
    svg += text_at(left - 8.0, y_of(bubble) + 4.0, "end",
                   fmt::format("{:.3g}%", std::abs(100.0 * bubble)));
  }
  auto label_end = 0.0;
  for (const auto value : values) {
    const auto label = fmt::format("{:.4g}", value);
    const auto half = 4.0 * static_cast<double>(label.size()) + 4.0;
    if (x_of(value) - half < label_end) continue;  // No room.
    label_end = x_of(value) + half;
    svg += text_at(x_of(value), height - bottom + 20.0, "middle", label);
  }
  svg += text_at((left + width - right) / 2.0, height - 15.0, "middle", axes[along].name);
  svg += text_at(left, top - 12.0, "start", "bubble, of all time");
  for (std::size_t i = 0; i < lines.size(); ++i) {
    std::string path;
    for (const auto& [value, bubble] : lines[i].points) {
      path += fmt::format("{:.1f},{:.1f} ", x_of(value), y_of(bubble));
    }
    svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
                       path, colours[i % colours.size()]);
    for (const auto& [value, bubble] : lines[i].points) {
      svg += mark(i, x_of(value), y_of(bubble));
    }
    const auto y = top + line_height * static_cast<double>(i) + 10.0;
    svg += mark(i, width - right + 24.0, y);
    svg += text_at(width - right + 36.0, y + 4.0, "start", lines[i].name);
  }
  return svg + "</svg>\n";
}

}  // namespace troupe::cli
