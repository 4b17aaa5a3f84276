#include "troupe/engine/draw.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "schedule_scope.hpp"

namespace troupe {
namespace {

const TimeUnit steps{1, "steps"};

Picture picture_of(const Schedule& schedule, const CostModel& costs = {}) {
  return make_picture(schedule.name, schedule, simulate(schedule, costs), steps);
}

/// A box as it stands in the SVG.
struct DrawnBox {
  std::string name;
  double x = 0.0;
  double y = 0.0;
  double width = 0.0;
  std::string colour;
  std::string label;
  double font_size = 0.0;
};

/// What stands in `text` between the first `before` and the next `after`; empty without them.
std::string between(const std::string& text, const std::string& before, const std::string& after) {
  const auto found = text.find(before);
  if (found == std::string::npos) return {};
  const auto begin = found + before.size();
  const auto end = text.find(after, begin);
  return end == std::string::npos ? std::string{} : text.substr(begin, end - begin);
}

std::vector<DrawnBox> boxes_in(const std::string& svg) {
  const std::string group_begin = "<g><title>";
  std::vector<DrawnBox> boxes;
  for (auto at = svg.find(group_begin); at != std::string::npos;
       at = svg.find(group_begin, at + 1)) {
    const auto group = svg.substr(at, svg.find("</g>", at) - at);
    const auto text_at = group.find("<text ");
    const auto rect = group.substr(0, text_at);
    const auto text = text_at == std::string::npos ? std::string{} : group.substr(text_at);
    boxes.push_back({between(rect, "<title>", " "), std::stod(between(rect, " x=\"", "\"")),
                     std::stod(between(rect, " y=\"", "\"")),
                     std::stod(between(rect, " width=\"", "\"")), between(rect, " fill=\"", "\"/>"),
                     between(text, ">", "</text>"),
                     text.empty() ? 0.0 : std::stod(between(text, " font-size=\"", "\""))});
  }
  return boxes;
}

/// Whether every element that opens also closes, in the right order.
bool is_well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (auto at = xml.find('<'); at != std::string::npos; at = xml.find('<', at + 1)) {
    const auto tag = between(xml.substr(at, xml.find('>', at) + 1 - at), "<", ">");
    const auto begin = tag.starts_with('/') ? 1U : 0U;
    const auto end = tag.find_first_not_of("abcdefghijklmnopqrstuvwxyz", begin);
    const auto name = tag.substr(begin, end - begin);
    if (name.empty() || tag.find('<') != std::string::npos) return false;
    if (tag.ends_with('/')) continue;
    if (begin == 0) {
      open.push_back(name);
    } else if (open.empty() || open.back() != name) {
      return false;
    } else {
      open.pop_back();
    }
  }
  return open.empty()
         && std::count(xml.begin(), xml.end(), '<') == std::count(xml.begin(), xml.end(), '>');
}

/// `text` without the line ends that a backslash precedes.
std::string unwrapped(std::string text) {
  for (auto at = text.find("\\\n"); at != std::string::npos; at = text.find("\\\n", at))
    text.erase(at, 2);
  return text;
}

TEST(DrawText, AlignsRanksByTime) {
  EXPECT_EQ(draw_text(picture_of(make_1f1b(3, 3))),
            "rank 0: 0F0 0F1 0F2 .   .   .   .   0B0---- .   0B1---- .   0B2----\n"
            "rank 1: .   1F0 1F1 .   .   1B0---- 1F2 1B1---- .   1B2---- .   .\n"
            "rank 2: .   .   2F0 2B0---- 2F1 2B1---- 2F2 2B2---- .   .   .   .\n");
}

TEST(DrawText, ShowsTheOptimizerAndUnevenCosts) {
  const CostModel costs{.stages = {PassCosts::of_parts(2, 2, 1), PassCosts::of_parts(4, 2, 2)},
                        .optimizer_ns = {3}};
  EXPECT_EQ(draw_text(picture_of(split_backward(make_gpipe(2, 1)), costs)),
            "rank 0: 0F0---- .   .   .   .   .   .   0I0---- 0W0 opt--------\n"
            "rank 1: .   .   1F0------------ 1I0---- 1W0---- opt-------- .\n");
}

TEST(DrawText, StaysBoundedWhenOnePassIsTiny) {
  const CostModel costs{.stages = {PassCosts::of_parts(1'000'000'000, 1, 1)}};
  EXPECT_LT(draw_text(picture_of(make_gpipe(2, 2), costs)).size(), 2U * 5 * 4096);
}

TEST(DrawSvg, PutsATitleANoteALaneAndItsBoxes) {
  const auto picture = picture_of(make_gpipe(1, 1));
  const auto svg = draw_svg({&picture, 1}, steps);
  const auto begin = svg.find("<text x=\"65.76\" y=\"64\">");
  ASSERT_NE(begin, std::string::npos) << svg;
  EXPECT_EQ(svg.substr(begin, svg.find("<line") - begin), unwrapped(R"svg(<text x="65.76" y="64">\
<tspan class="t">gpipe</tspan><tspan class="m" dx="14">3 steps, bubble 0 %</tspan></text>
<text x="57.76" y="91" text-anchor="end">rank 0</text>
<rect x="65.76" y="76" width="840" height="22" fill="#EFEFEF"/>
<g class="b">
<g><title>0F0 (forward): 0 to 1 steps, rank 0</title>\
<rect x="65.76" y="76" width="280" height="22" fill="#56B4E9"/>\
<text x="205.76" y="90.96" font-size="11">0</text></g>
<g><title>0B0 (backward): 1 to 3 steps, rank 0</title>\
<rect x="345.76" y="76" width="560" height="22" fill="#E69F00"/>\
<text x="625.76" y="90.96" font-size="11">0</text></g>
</g>
)svg"));
}

TEST(DrawSvg, DrawsEveryPassOnceAndNothingOverAnother) {
  for_every_schedule([](const Schedule& schedule) {
    if (schedule.microbatch_count % 4 != 0) return;
    const auto picture = picture_of(schedule, {.stages = {PassCosts::of_parts(3, 4, 2)}});
    const auto svg = draw_svg({&picture, 1}, steps);
    ASSERT_TRUE(is_well_formed(svg));
    std::multiset<std::string> drawn;
    std::map<double, double> end_of_row;
    for (const auto& box : boxes_in(svg)) {
      drawn.insert(box.name);
      auto& end = end_of_row.try_emplace(box.y, 0.0).first->second;
      ASSERT_GE(box.x, end - 0.02) << box.name;
      end = box.x + box.width;
      ASSERT_LE(0.5 * box.font_size * static_cast<double>(box.label.size()), box.width) << box.name;
    }
    std::multiset<std::string> planned;
    for (const auto& row : schedule.ranks) {
      for (const auto& action : row) planned.insert(to_string(action));
    }
    ASSERT_EQ(drawn, planned);
    ASSERT_EQ(end_of_row.size(), schedule.rank_count());
  });
}

TEST(DrawSvg, LabelsEveryBoxOfEightRanksAndThirtyTwoMicrobatches) {
  const auto picture = picture_of(make_1f1b(8, 32));
  const auto boxes = boxes_in(draw_svg({&picture, 1}, steps));
  ASSERT_EQ(boxes.size(), 8U * 32 * 2);
  for (const auto& box : boxes) {
    EXPECT_GE(box.font_size, 8.0) << box.name;
    EXPECT_TRUE(box.name.ends_with(box.label)) << box.name;
  }
}

TEST(DrawSvg, TellsPassesAndChunksApartByColour) {
  const auto schedule = make_interleaved_1f1b(2, 4, 3).value();
  const auto picture = picture_of(split_backward(schedule));
  std::map<std::string, std::string> meaning;
  for (const auto& box : boxes_in(draw_svg({&picture, 1}, steps))) {
    const auto letter_at = box.name.find_first_of("FBIW");
    const auto chunk = std::stoi(box.name) / 2;
    const auto what = box.name.substr(letter_at, 1) + std::to_string(chunk);
    EXPECT_EQ(meaning.try_emplace(box.colour, what).first->second, what);
  }
  EXPECT_EQ(meaning.size(), 9U);
}

TEST(DrawSvg, StacksPicturesOverOneTimeAxis) {
  const auto slow = picture_of(make_gpipe(2, 4), {.link_ns = {5}});
  const std::vector pictures{picture_of(make_gpipe(2, 4)), slow};
  const auto boxes = boxes_in(draw_svg(pictures, steps));
  ASSERT_EQ(boxes.size(), 32U);
  EXPECT_EQ(boxes[0].x, boxes[16].x);
  EXPECT_EQ(boxes[0].width, boxes[16].width);
  EXPECT_LT(boxes[7].x, boxes[23].x);
  EXPECT_LT(boxes[15].y, boxes[16].y);
}

TEST(DrawSvg, KeepsMarkupInWordsOutOfTheMarkup) {
  Picture picture{.title = "a < b & c > d\x01", .note = "<g>", .lanes = {{"<rank>", {}}}};
  picture.lanes[0].boxes.push_back(
      {.kind = BoxKind::reduce, .end_ns = 5'000'000, .label = "&", .name = "<sum>"});
  const auto svg = draw_svg({&picture, 1});
  EXPECT_TRUE(is_well_formed(svg));
  EXPECT_NE(svg.find("a &lt; b &amp; c &gt; d "), std::string::npos);
  EXPECT_NE(svg.find("<title>&lt;sum&gt; (reduce gradients): 0 to 5 ms, &lt;rank&gt;</title>"),
            std::string::npos);
}

TEST(DrawSvg, SaysWhatABoxWaitedFor) {
  const auto picture = picture_of(make_interleaved_1f1b(2, 2, 2).value());
  const auto svg = draw_svg({&picture, 1}, steps);
  const auto title = [&](const std::string& name) {
    return between(svg, "<title>" + name + " ", "</title>");
  };
  EXPECT_EQ(title("0F0"), "(forward): 0 to 1 steps, rank 0") << "reads tokens";
  EXPECT_EQ(title("1F0"),
            "(forward): 1 to 2 steps, rank 1, waited since 0 for the activation from rank 0");
  EXPECT_EQ(title("2F0"), "(forward): 2 to 3 steps, rank 0") << "its input was there";
  EXPECT_EQ(title("2B0"),
            "(backward): 6 to 8 steps, rank 0, waited since 4 for the gradient from rank 1");
}

TEST(DrawHtml, HoldsTheDrawingAndTheTextAndNeedsNoNetwork) {
  const auto picture = picture_of(make_1f1b(2, 3));
  const auto page = draw_html("a < b", "one & two\n  three", {&picture, 1}, steps);
  EXPECT_EQ(between(page, "<div id=\"picture\">\n", "</div>"), draw_svg({&picture, 1}, steps));
  EXPECT_NE(page.find("<title>a &lt; b</title>"), std::string::npos);
  EXPECT_NE(page.find("<pre>one &amp; two\n  three</pre>"), std::string::npos);
  for (const auto* word : {"src=", "href=", "url(", "import", "fetch", "@font-face"}) {
    EXPECT_EQ(page.find(word), std::string::npos) << word;
  }
}

TEST(DrawHtml, HasALabelForEveryBoxOfSixtyFourRanks) {
  const auto picture = picture_of(make_1f1b(64, 256));
  const auto boxes = boxes_in(draw_html("", "", {&picture, 1}, steps));
  ASSERT_EQ(boxes.size(), 64U * 256 * 2);
  for (const auto& box : boxes) ASSERT_TRUE(box.font_size > 0.0 && !box.label.empty()) << box.name;
}

TEST(DrawSvg, DrawsNothingWithoutFallingOver) {
  EXPECT_TRUE(is_well_formed(draw_svg({})));
  const Picture empty{.title = "empty", .note = {}, .lanes = {{"rank 0", {}}}};
  EXPECT_TRUE(is_well_formed(draw_svg({&empty, 1})));
  EXPECT_EQ(draw_text(empty), "rank 0: .\n");
}

TEST(Picture, NotesTheLengthAndTheBubbleInAReadableUnit) {
  const CostModel costs{.stages = {PassCosts::of_parts(1'000'000, 1'250'000, 750'000)}};
  const auto schedule = make_1f1b(2, 3);
  const auto timeline = simulate(schedule, costs);
  EXPECT_EQ(make_picture("x", schedule, timeline).note, "12 ms, bubble 25 %");
  EXPECT_EQ(make_picture("x", schedule, timeline, {1'000'000, "forward passes"}).note,
            "12 forward passes, bubble 25 %");
}

TEST(Picture, ShowsEveryReplicaItsReductionsAndTheUpdateWhereItHappens) {
  CostModel costs{.optimizer_ns = {2},
                  .replicas = {.count = 2, .bucket_bytes = {{1}}, .wire = {.latency_ns = 4}}};
  costs.runtime.director_ns = 1;
  const auto schedule = make_1f1b(1, 1);
  const auto picture = make_picture("x", schedule, simulate(schedule, costs));
  ASSERT_EQ(picture.lanes.size(), 4U);
  EXPECT_EQ(picture.lanes[2].label, "replica 1 rank 0");
  EXPECT_EQ(picture.lanes[3].label, "reduce");
  // The passes end at 3, the reduction at 7; the director answers at 8.
  const auto& reduction = picture.lanes[3].boxes.at(0);
  EXPECT_EQ(reduction.kind, BoxKind::reduce);
  EXPECT_EQ(reduction.begin_ns, 3);
  EXPECT_EQ(reduction.end_ns, 7);
  const auto& update = picture.lanes[2].boxes.at(2);
  EXPECT_EQ(update.kind, BoxKind::optimizer);
  EXPECT_EQ(update.begin_ns, 8);
  EXPECT_EQ(update.end_ns, 10);
}

}  // namespace
}  // namespace troupe
