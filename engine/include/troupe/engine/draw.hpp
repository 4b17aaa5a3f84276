// troupe/engine/draw.hpp -- pictures of a step: who did what when, as SVG or as text.
//
// A picture is plain data, so a measured step is drawn the way a simulated one is, and both can
// stand in one drawing under one time axis.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "troupe/engine/schedule.hpp"
#include "troupe/engine/simulate.hpp"

namespace troupe {

/// What a box shows; each kind has a colour.
enum class BoxKind : std::uint8_t {
  forward,
  backward,
  backward_input,
  backward_weight,
  reduce,         ///< Gradients are summed over replicas.
  optimizer,      ///< Weights are updated.
  communication,  ///< Anything else that is sent or received, in a rank's own time.
  waiting,        ///< The rank goes no further.
  rejected,       ///< The rank goes no further, for that would break a rule.
};

/// Returns the kind of box that shows `pass`.
[[nodiscard]] BoxKind to_box_kind(Pass pass) noexcept;

/// A stretch of time in which a lane was busy with one thing.
struct Box {
  BoxKind kind = BoxKind::forward;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::uint32_t chunk = 0;   ///< Which of the lane's stages; each has its shade of the colour.
  std::string label;         ///< Inside the box where there is room, for example the microbatch.
  std::string name;          ///< In the tooltip and in text, for example `2F0`.
  std::string waited_for{};  ///< In the tooltip: why it began later than the one before ended.
};

/// One row: a rank, or anything that does one thing at a time. Boxes in order of time, not
/// overlapping.
struct Lane {
  std::string label;
  std::vector<Box> boxes;
};

/// The input of `action` as a tooltip names it, `the activation from rank 1`; empty if its own rank
/// makes it, or nobody.
[[nodiscard]] std::string input_name(const Schedule& schedule, const Action& action);

/// Rows under one title.
struct Picture {
  std::string title;
  std::string note;  ///< Beside the title, in small print.
  std::vector<Lane> lanes;
};

/// The unit of the time axis.
struct TimeUnit {
  std::int64_t size_ns = 0;  ///< 0: nanoseconds to seconds, whichever gives short numbers.
  std::string name;          ///< Not looked at when the size is 0.
};

/// `text` as the content of an XML element, with spaces for control characters.
[[nodiscard]] std::string escaped(std::string_view text);

/// Shows `timeline`, one lane per rank of every replica, with replicas one for its reductions below
/// it, and notes its length and its bubble.
/// @param timeline what `simulate` made of `schedule`.
[[nodiscard]] Picture make_picture(std::string title, const Schedule& schedule,
                                   const Timeline& timeline, const TimeUnit& unit = {});

/// Draws the pictures one below the other over one time axis from 0, as a standalone SVG: a row per
/// lane, a box per box with its name, lane, times and what it waited for as a tooltip, a legend of
/// what occurs. The colours are those of Okabe and Ito, which people of every colour vision tell
/// apart, with grey and red. The wider the shortest box must be to hold its label, the wider the
/// drawing, within limits.
[[nodiscard]] std::string draw_svg(std::span<const Picture> pictures, const TimeUnit& unit = {});

/// The same drawing in a standalone HTML page that needs no network: it can be zoomed, moved and
/// pointed at, holds every label however small, and keeps the names of the lanes in sight. Without
/// scripts it is a picture that stands still.
/// @param text below the picture, line by line as it is.
[[nodiscard]] std::string draw_html(std::string_view title, std::string_view text,
                                    std::span<const Picture> pictures, const TimeUnit& unit = {});

/// Draws the picture as text, a line per lane in which time runs from left to right: `.` for an
/// idle tick, a box as its name and dashes up to its end. A tick is as long as the shortest box,
/// unless that makes more than 4,096 of them; then a box shows as much of its name as it has room
/// for.
[[nodiscard]] std::string draw_text(const Picture& picture);

}  // namespace troupe
