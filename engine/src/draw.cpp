#include "troupe/engine/draw.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string_view>
#include <utility>

#include "html_page.hpp"

namespace troupe {

namespace {

// -- numbers and words ----------------------------------------------------------------------------

/// `value` with at most `digits` decimals and no zeros behind them.
std::string to_decimal(double value, int digits) {
  std::array<char, 64> buffer{};
  const auto size = std::snprintf(buffer.data(), buffer.size(), "%.*f", digits, value);
  std::string text{buffer.data(), static_cast<std::size_t>(size)};
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.ends_with('.')) text.pop_back();
  }
  return text == "-0" ? "0" : text;
}

std::string in_unit(std::int64_t time_ns, const TimeUnit& unit, int digits = 2) {
  return to_decimal(static_cast<double>(time_ns) / static_cast<double>(unit.size_ns), digits);
}

/// `unit`, or the one in which `longest_ns` is a number of one to four digits.
TimeUnit resolved(const TimeUnit& unit, std::int64_t longest_ns) {
  if (unit.size_ns > 0) return unit;
  for (const auto& [size_ns, name] :
       {std::pair{std::int64_t{1'000'000'000}, "s"}, {1'000'000, "ms"}, {1'000, "\u00b5s"}}) {
    if (longest_ns >= 2 * size_ns) return {size_ns, name};
  }
  return {1, "ns"};
}

// -- colours --------------------------------------------------------------------------------------

struct Style {
  BoxKind kind;
  const char* name;
  std::array<int, 3> colour;  ///< Red, green, blue; from Okabe and Ito's palette.
};

constexpr std::array styles{
    Style{BoxKind::forward, "forward", {0x56, 0xB4, 0xE9}},
    Style{BoxKind::backward, "backward", {0xE6, 0x9F, 0x00}},
    Style{BoxKind::backward_input, "backward, input", {0xD5, 0x5E, 0x00}},
    Style{BoxKind::backward_weight, "backward, weights", {0x00, 0x9E, 0x73}},
    Style{BoxKind::reduce, "reduce gradients", {0xF0, 0xE4, 0x42}},
    Style{BoxKind::optimizer, "optimizer", {0xCC, 0x79, 0xA7}},
    Style{BoxKind::communication, "communication", {0x00, 0x72, 0xB2}},
    Style{BoxKind::waiting, "waits for ever", {0xBB, 0xBB, 0xBB}},
    Style{BoxKind::rejected, "breaks a rule", {0xFF, 0x60, 0x60}},
};

const Style& style_of(BoxKind kind) noexcept {
  return styles[static_cast<std::size_t>(kind)];
}

/// The kind's colour, the paler the later the chunk.
std::string colour_of(BoxKind kind, std::uint32_t chunk, std::uint32_t chunk_count) {
  constexpr double palest = 0.62;
  const auto white =
      chunk_count < 2 ? 0.0 : palest * static_cast<double>(chunk) / (chunk_count - 1.0);
  std::array<int, 3> mixed{};
  std::transform(
      style_of(kind).colour.begin(), style_of(kind).colour.end(), mixed.begin(),
      [&](int part) { return static_cast<int>(std::lround(part + white * (255 - part))); });
  std::array<char, 8> text{};
  std::snprintf(text.data(), text.size(), "#%02X%02X%02X", static_cast<unsigned>(mixed[0]),
                static_cast<unsigned>(mixed[1]), static_cast<unsigned>(mixed[2]));
  return text.data();
}

// -- what the pictures hold -----------------------------------------------------------------------

struct Survey {
  std::int64_t end_ns = 1;
  double label_density = 0.0;  ///< The most characters per nanosecond that a label needs.
  std::size_t lane_label_size = 0;
  std::uint32_t chunk_count = 1;
  std::array<bool, styles.size()> occurs{};
};

template <class Visit>
void for_every_box(std::span<const Picture> pictures, Visit visit) {
  for (const auto& picture : pictures) {
    for (const auto& lane : picture.lanes) {
      for (const auto& box : lane.boxes) visit(box);
    }
  }
}

Survey survey_of(std::span<const Picture> pictures) {
  Survey survey;
  for_every_box(pictures, [&](const Box& box) {
    survey.end_ns = std::max(survey.end_ns, box.end_ns);
    survey.chunk_count = std::max(survey.chunk_count, box.chunk + 1);
    survey.occurs[static_cast<std::size_t>(box.kind)] = true;
    const auto duration_ns =
        static_cast<double>(std::max<std::int64_t>(box.end_ns - box.begin_ns, 1));
    const auto label_size = static_cast<double>(box.label.size());
    survey.label_density = std::max(survey.label_density, label_size / duration_ns);
  });
  for (const auto& picture : pictures) {
    for (const auto& lane : picture.lanes) {
      survey.lane_label_size = std::max(survey.lane_label_size, lane.label.size());
    }
  }
  return survey;
}

// -- the drawing ----------------------------------------------------------------------------------

// All in pixels.
constexpr double margin = 16.0;
constexpr double legend_height = 30.0;
constexpr double title_height = 30.0;
constexpr double lane_height = 22.0;
constexpr double lane_pitch = 26.0;
constexpr double axis_height = 44.0;
constexpr double plot_width_min = 840.0;
constexpr double plot_width_max = 2600.0;
constexpr double font_size = 12.0;
constexpr double label_font_size_max = 11.0;
constexpr double label_font_size_min = 6.0;
constexpr double zoomed_label_font_size_min = 0.5;  ///< Where a reader can zoom in.
constexpr double tick_distance_min = 80.0;
constexpr double letter_width = 0.58;  ///< Of a sans-serif font, as a share of its size.

std::string attribute(const char* name, double value) {
  return std::string{" "} + name + "=\"" + to_decimal(value, 2) + "\"";
}

double text_width(std::string_view text, double size) {
  return static_cast<double>(text.size()) * letter_width * size;
}

class SvgDrawing {
public:
  /// @param least_label the font size below which a label is left out.
  SvgDrawing(std::span<const Picture> pictures, const TimeUnit& unit, double least_label)
      : least_label_{least_label},
        survey_{survey_of(pictures)},
        unit_{resolved(unit, survey_.end_ns)},
        left_{margin + static_cast<double>(survey_.lane_label_size) * letter_width * font_size
              + 8.0},
        plot_width_{width_for(survey_)} {
    std::size_t lane_count = 0;
    for (const auto& picture : pictures) lane_count += picture.lanes.size();
    height_ = 2 * margin + legend_height + axis_height
              + static_cast<double>(pictures.size()) * (title_height + 6.0)
              + static_cast<double>(lane_count) * lane_pitch;
    open();
    auto y = margin + legend();
    const auto top = y;
    for (const auto& picture : pictures) y = draw(picture, y) + 6.0;
    axis(top, y);
    svg_ += "</svg>\n";
  }

  std::string take() && { return std::move(svg_); }

private:
  static double width_for(const Survey& survey) {
    constexpr double comfortable_font_size = 9.0;
    constexpr double padding = 1.3;
    const auto wanted = survey.label_density * static_cast<double>(survey.end_ns) * letter_width
                        * comfortable_font_size * padding;
    return std::clamp(wanted, plot_width_min, plot_width_max);
  }
  [[nodiscard]] double width() const noexcept { return left_ + plot_width_ + 2 * margin; }
  [[nodiscard]] double x_of(double time_ns) const noexcept {
    return left_ + time_ns / static_cast<double>(survey_.end_ns) * plot_width_;
  }
  [[nodiscard]] double x_of(std::int64_t time_ns) const noexcept {
    return x_of(static_cast<double>(time_ns));
  }

  void open() {
    const auto w = to_decimal(width(), 0);
    const auto h = to_decimal(height_, 0);
    svg_ = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + w + "\" height=\"" + h
           + "\" viewBox=\"0 0 " + w + " " + h
           + "\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\">\n"
             "<style>.b rect{stroke:#fff;stroke-width:.8}.b text{text-anchor:middle}"
             ".m{fill:#555}.t{font-weight:bold;font-size:14px}</style>\n"
             "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  }

  void text(double x, double y, std::string_view content, const char* more = "") {
    svg_ += "<text" + attribute("x", x) + attribute("y", y) + more + ">" + escaped(content)
            + "</text>\n";
  }

  void rectangle(double x, double y, double w, double h, const std::string& colour) {
    svg_ += "<rect" + attribute("x", x) + attribute("y", y) + attribute("width", w)
            + attribute("height", h) + " fill=\"" + colour + "\"/>";
  }

  /// One swatch per kind of box, split into the shades of the chunks; returns its height.
  double legend() {
    constexpr double swatch = 14.0;
    auto x = left_;
    svg_ += "<g class=\"k\">\n";
    for (const auto& style : styles) {
      if (!survey_.occurs[static_cast<std::size_t>(style.kind)]) continue;
      const bool is_pass = style.kind <= BoxKind::backward_weight;
      const auto shades = is_pass ? std::min(survey_.chunk_count, 4U) : 1U;
      for (std::uint32_t shade = 0; shade < shades; ++shade) {
        const auto chunk = shades < 2 ? 0 : shade * (survey_.chunk_count - 1) / (shades - 1);
        rectangle(x, margin, swatch, swatch, colour_of(style.kind, chunk, survey_.chunk_count));
        x += swatch;
      }
      text(x + 5.0, margin + 11.5, style.name);
      x += 5.0 + text_width(style.name, font_size) + 18.0;
    }
    if (survey_.chunk_count > 1) {
      text(x, margin + 11.5, "darkest: first chunk of its rank", " class=\"m\"");
    }
    svg_ += "</g>\n";
    return legend_height;
  }

  double draw(const Picture& picture, double y) {
    svg_ += "<text" + attribute("x", left_) + attribute("y", y + 18.0) + "><tspan class=\"t\">"
            + escaped(picture.title) + "</tspan><tspan class=\"m\" dx=\"14\">"
            + escaped(picture.note) + "</tspan></text>\n";
    y += title_height;
    for (const auto& lane : picture.lanes) {
      text(left_ - 8.0, y + lane_height / 2 + 4.0, lane.label, " text-anchor=\"end\"");
      rectangle(left_, y, plot_width_, lane_height, "#EFEFEF");
      svg_ += "\n<g class=\"b\">\n";
      std::int64_t end_ns = 0;
      for (const auto& box : lane.boxes) {
        draw(box, lane, end_ns, y);
        end_ns = box.end_ns;
      }
      svg_ += "</g>\n";
      y += lane_pitch;
    }
    return y;
  }

  /// @param idle_since_ns the end of the box before.
  void draw(const Box& box, const Lane& lane, std::int64_t idle_since_ns, double y) {
    const auto x = x_of(box.begin_ns);
    const auto w = x_of(box.end_ns) - x;
    svg_ += "<g><title>" + escaped(box.name) + " (" + style_of(box.kind).name
            + "): " + in_unit(box.begin_ns, unit_) + " to " + in_unit(box.end_ns, unit_) + " "
            + escaped(unit_.name + ", " + lane.label);
    if (!box.waited_for.empty()) {
      svg_ += ", waited since " + in_unit(idle_since_ns, unit_) + " for " + escaped(box.waited_for);
    }
    svg_ += "</title>";
    rectangle(x, y, w, lane_height, colour_of(box.kind, box.chunk, survey_.chunk_count));
    const auto padding = std::min(2.0, w / 4);
    const auto room = (w - padding) / (letter_width * static_cast<double>(box.label.size()));
    const auto size = std::min(label_font_size_max, std::floor(room * 2) / 2);
    if (!box.label.empty() && size >= least_label_) {
      svg_ += "<text" + attribute("x", x + w / 2)
              + attribute("y", y + lane_height / 2 + size * 0.36) + attribute("font-size", size)
              + ">" + escaped(box.label) + "</text>";
    }
    svg_ += "</g>\n";
  }

  /// Numbers below the lanes, and through them a line for each.
  void axis(double top, double y) {
    const auto step = tick_distance();
    const auto end = static_cast<double>(survey_.end_ns) / static_cast<double>(unit_.size_ns);
    const auto last = static_cast<int>(std::floor(end / step + 1e-9));
    for (int tick = 0; tick <= last; ++tick) {
      const auto value = tick * step;
      const auto x = x_of(value * static_cast<double>(unit_.size_ns));
      svg_ += "<line" + attribute("x1", x) + attribute("x2", x) + attribute("y1", top + 26.0)
              + attribute("y2", y + 4.0)
              + " stroke=\"#000\" stroke-opacity=\".13\" stroke-dasharray=\"2 3\"/>\n";
      text(x, y + 18.0, to_decimal(value, 6), " text-anchor=\"middle\"");
    }
    text(left_ + plot_width_ / 2, y + 36.0, "time [" + unit_.name + "]",
         " text-anchor=\"middle\" class=\"m\"");
  }

  /// The distance of ticks in units of the axis: 1, 2 or 5 times a power of ten.
  [[nodiscard]] double tick_distance() const {
    const auto per_pixel =
        static_cast<double>(survey_.end_ns) / static_cast<double>(unit_.size_ns) / plot_width_;
    const auto least = per_pixel * tick_distance_min;
    const auto decade = std::pow(10.0, std::floor(std::log10(least)));
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (factor * decade >= least) return factor * decade;
    }
    return 10.0 * decade;
  }

  double least_label_;
  Survey survey_;
  TimeUnit unit_;
  double left_;
  double plot_width_;
  double height_ = 0.0;
  std::string svg_;
};

}  // namespace

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      default:
        result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return result;
}

BoxKind to_box_kind(Pass pass) noexcept {
  switch (pass) {
    case Pass::forward:
      return BoxKind::forward;
    case Pass::backward:
      return BoxKind::backward;
    case Pass::backward_input:
      return BoxKind::backward_input;
    case Pass::backward_weight:
      return BoxKind::backward_weight;
  }
  return BoxKind::forward;
}

std::string input_name(const Schedule& schedule, const Action& action) {
  const auto source = schedule.source_of(action);
  if (!source) return {};
  const auto from = schedule.rank_of_stage[source->value()];
  if (from == schedule.rank_of_stage[action.stage.value()]) return {};
  return std::string{action.pass == Pass::forward ? "the activation" : "the gradient"}
         + " from rank " + std::to_string(from.value());
}

Picture make_picture(std::string title, const Schedule& schedule, const Timeline& timeline,
                     const TimeUnit& unit) {
  std::vector<std::uint32_t> chunk_of_stage(schedule.stage_count());
  std::vector<std::uint32_t> chunk_count(schedule.rank_count(), 0);
  for (std::uint32_t s = 0; s < schedule.stage_count(); ++s) {
    chunk_of_stage[s] = chunk_count[schedule.rank_of_stage[s].value()]++;
  }
  const auto scale = resolved(unit, timeline.makespan_ns);
  Picture picture{.title = std::move(title),
                  .note = in_unit(timeline.makespan_ns, scale) + " " + scale.name + ", bubble "
                          + to_decimal(100 * timeline.bubble_of_total(), 1) + " %",
                  .lanes = {}};
  const bool has_replicas = timeline.ranks.size() > schedule.rank_count();
  for (std::uint32_t row = 0; row < timeline.ranks.size(); ++row) {
    const auto r = row % schedule.rank_count();
    auto& [label, boxes] = picture.lanes.emplace_back();
    if (has_replicas) label = "replica " + std::to_string(row / schedule.rank_count()) + " ";
    label += "rank " + std::to_string(r);
    boxes.reserve(timeline.ranks[row].size() + 1);
    std::int64_t idle_since_ns = 0;
    for (const auto& [action, begin_ns, end_ns] : timeline.ranks[row]) {
      boxes.push_back({.kind = to_box_kind(action.pass),
                       .begin_ns = begin_ns,
                       .end_ns = end_ns,
                       .chunk = chunk_of_stage[action.stage.value()],
                       .label = std::to_string(action.microbatch.value()),
                       .name = to_string(action),
                       .waited_for = begin_ns > idle_since_ns ? input_name(schedule, action) : ""});
      idle_since_ns = end_ns;
    }
    const auto& time = timeline.rank_times[row];
    if (time.optimizer_ns > 0) {
      boxes.push_back({.kind = BoxKind::optimizer,
                       .begin_ns = time.optimizer_begin_ns,
                       .end_ns = time.optimizer_begin_ns + time.optimizer_ns,
                       .label = {},
                       .name = "opt"});
    }
    if (timeline.reductions[r].empty()) continue;
    auto& reductions = picture.lanes.emplace_back(Lane{.label = "reduce", .boxes = {}}).boxes;
    for (const auto& [stage, bucket, begin_ns, end_ns] : timeline.reductions[r]) {
      reductions.push_back({.kind = BoxKind::reduce,
                            .begin_ns = begin_ns,
                            .end_ns = end_ns,
                            .chunk = chunk_of_stage[stage.value()],
                            .label = {},
                            .name = std::to_string(stage.value()) + " reduce"});
    }
  }
  return picture;
}

std::string draw_svg(std::span<const Picture> pictures, const TimeUnit& unit) {
  return SvgDrawing{pictures, unit, label_font_size_min}.take();
}

std::string draw_html(std::string_view title, std::string_view text,
                      std::span<const Picture> pictures, const TimeUnit& unit) {
  std::string page{html_page::head};
  page += "<title>" + escaped(title) + "</title>\n";
  page += html_page::before_drawing;
  page += SvgDrawing{pictures, unit, zoomed_label_font_size_min}.take();
  page += html_page::behind_drawing;
  page += "<pre>";
  for (const char c : text) page += c == '\n' ? std::string{c} : escaped({&c, 1});
  return page + "</pre>\n</html>\n";
}

std::string draw_text(const Picture& picture) {
  constexpr std::int64_t tick_count_max = 4096;
  const auto survey = survey_of({&picture, 1});
  auto tick_ns = survey.end_ns;
  for_every_box({&picture, 1}, [&](const Box& box) {
    if (box.end_ns > box.begin_ns) tick_ns = std::min(tick_ns, box.end_ns - box.begin_ns);
  });
  tick_ns = std::max(tick_ns, survey.end_ns / tick_count_max + 1);
  std::size_t name_size = 1;  // Of the part of a name that falls on one tick.
  for_every_box({&picture, 1}, [&](const Box& box) {
    const auto ticks =
        static_cast<std::size_t>(std::max<std::int64_t>((box.end_ns - box.begin_ns) / tick_ns, 1));
    name_size = std::max(name_size, box.name.size() / ticks);
  });

  const auto column_of = [&, tick_size = static_cast<double>(name_size + 1)](std::int64_t time_ns) {
    const auto ticks = static_cast<double>(time_ns) / static_cast<double>(tick_ns);
    return static_cast<std::size_t>(std::lround(ticks * tick_size));
  };
  std::string idle;
  while (idle.size() < column_of(survey.end_ns)) idle += '.' + std::string(name_size, ' ');

  std::string text;
  for (const auto& lane : picture.lanes) {
    auto line = idle;
    for (const auto& box : lane.boxes) {
      const auto begin = column_of(box.begin_ns);
      const auto end = std::max(column_of(box.end_ns), begin + 1);
      auto content = box.name + std::string(end - begin, '-');
      content.resize(end - begin - 1);
      line.replace(begin, end - begin, content + ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += std::string(survey.lane_label_size - lane.label.size(), ' ') + lane.label + ": " + line
            + '\n';
  }
  return text;
}

}  // namespace troupe
