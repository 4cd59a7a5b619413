#include "speech/segmenter.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace headrace;

namespace {

using Kind = SegmentEvent::Kind;

// Pushes '#' (speech), '.' (silence), '-' (between the two thresholds) and collects what comes.
std::vector<SegmentEvent> hear(Segmenter& segmenter, const std::string& frames) {
  std::vector<SegmentEvent> events;
  for (const char c : frames) {
    segmenter.push(c == '#' ? 0.9F : c == '-' ? 0.4F : 0.01F);
    while (std::optional<SegmentEvent> event = segmenter.next()) events.push_back(*event);
  }
  return events;
}

std::vector<SegmentEvent> of_kind(const std::vector<SegmentEvent>& events, Kind kind) {
  std::vector<SegmentEvent> some;
  for (const SegmentEvent& event : events) {
    if (event.kind == kind) some.push_back(event);
  }
  return some;
}

std::string times(const std::string& text, std::size_t count) {
  std::string all;
  for (std::size_t i = 0; i < count; ++i) all += text;
  return all;
}

}  // namespace

TEST_CASE("silence and single frames of noise are no segment") {
  Segmenter segmenter({});
  CHECK(hear(segmenter, times("....#....", 50)).empty());
  CHECK(hear(segmenter, times("-", 100)).empty());
  CHECK_FALSE(segmenter.open());
}

TEST_CASE("a segment starts before its first speech and ends in silence") {
  Segmenter segmenter({});
  const auto events = hear(segmenter, times(".", 20) + times("#", 9) + times(".", 10));
  REQUIRE(events.size() >= 3);
  CHECK(events[0].kind == Kind::kStarted);
  CHECK(events[0].begin == 12);  // 8 frames before frame 20
  const SegmentEvent& last = events.back();
  CHECK(last.kind == Kind::kFinal);
  CHECK(last.segment == 1);
  CHECK(last.begin == 12);
  CHECK(last.end == 39);
  CHECK(last.speech_end == 29);
  CHECK(last.speculated);
  REQUIRE(last.voiced.size() == 27);
  CHECK_FALSE(last.voiced[7]);
  CHECK(last.voiced[8]);
  CHECK(last.voiced[16]);
  CHECK_FALSE(last.voiced[17]);
  const auto speculative = of_kind(events, Kind::kSpeculative);
  REQUIRE(speculative.size() == 1);
  CHECK(speculative[0].end == 33);  // four frames of silence
}

TEST_CASE("speech that goes on takes back what was decoded ahead") {
  Segmenter segmenter({});
  const auto events = hear(
      segmenter, times("#", 5) + "....." + times("#", 5) + times(".", 4) + "#" + times(".", 10));
  CHECK(of_kind(events, Kind::kSpeculative).size() == 3);
  const auto finals = of_kind(events, Kind::kFinal);
  REQUIRE(finals.size() == 1);
  CHECK(finals[0].speculated);
  CHECK(finals[0].speech_end == 20);
}

TEST_CASE("once somebody speaks, less counts as speech") {
  Segmenter segmenter({});
  CHECK(of_kind(hear(segmenter, times("#", 5) + times("-", 30)), Kind::kFinal).empty());
  CHECK(segmenter.open());
}

TEST_CASE("partials come at their interval, not in what may be the end") {
  Segmenter segmenter({.eou_window = 4, .partial_interval = 10});
  const auto events = hear(segmenter, times("#", 35) + times(".", 9));
  const auto partials = of_kind(events, Kind::kPartial);
  REQUIRE(partials.size() == 3);
  CHECK(partials[0].end == 13);
  CHECK(partials[1].end == 23);
  CHECK(partials[2].end == 33);
  Segmenter without({.partial_interval = 0});
  CHECK(of_kind(hear(without, times("#", 100)), Kind::kPartial).empty());
}

TEST_CASE("a long segment ends at a dip") {
  Segmenter segmenter({.soft_cut = 50, .dip = 2});
  const auto events = hear(
      segmenter, times("#", 30) + "..." + times("#", 30) + ".." + times("#", 9) + times(".", 10));
  const auto finals = of_kind(events, Kind::kFinal);
  REQUIRE(finals.size() == 2);
  CHECK(finals[0].begin == 0);
  CHECK(finals[0].end == 65);
  CHECK_FALSE(finals[0].speculated);
  CHECK(finals[1].begin == 65);  // the pre-roll does not reach into what was told
  CHECK(finals[1].speech_end == 74);
}

TEST_CASE("speech without a pause is cut where it is quietest, and goes on") {
  Segmenter segmenter({.hard_cut = 100, .cut_search = 40});
  const auto events =
      hear(segmenter, times("#", 80) + "-" + times("#", 19) + times("#", 20) + times(".", 10));
  const auto finals = of_kind(events, Kind::kFinal);
  REQUIRE(finals.size() == 2);
  CHECK(finals[0].end == 81);
  CHECK(finals[0].voiced.size() == 81);
  CHECK(finals[1].begin == 81);
  CHECK(finals[1].end == 130);
  CHECK(finals[1].voiced.size() == 49);
  CHECK(finals[1].segment == 2);
}

TEST_CASE("what follows a cut without speech is dropped") {
  Segmenter segmenter({.hard_cut = 60, .cut_search = 10, .least_speech = 3});
  const auto events = hear(segmenter, times("#", 59) + "." + times(".", 10));
  CHECK(of_kind(events, Kind::kFinal).size() == 1);
  CHECK_FALSE(segmenter.open());
  const auto dropped = of_kind(events, Kind::kDropped);
  CHECK(dropped.size() == 1);
}

TEST_CASE("an end that is forced comes at once, and only where somebody spoke") {
  Segmenter segmenter({});
  segmenter.force_end();
  CHECK_FALSE(segmenter.next());
  hear(segmenter, times("#", 10));
  segmenter.force_end();
  const auto event = segmenter.next();
  REQUIRE(event);
  CHECK(event->kind == Kind::kFinal);
  CHECK(event->end == 10);
  CHECK_FALSE(segmenter.next());
  const auto events = hear(segmenter, times("#", 5));
  REQUIRE(!events.empty());
  CHECK(events[0].begin == 10);
}

TEST_CASE("no frame is forgotten that a segment may still need") {
  Segmenter segmenter({});
  for (int i = 0; i < 400; ++i) {
    segmenter.push(i % 97 < 60 ? 0.9F : 0.0F);
    const uint64_t needed = segmenter.needed_from();
    CHECK(needed <= segmenter.frames());
    while (std::optional<SegmentEvent> event = segmenter.next()) {
      if (event->kind == Kind::kStarted) CHECK(event->begin >= needed);
    }
  }
}

TEST_CASE("the share of silence that ends a segment may be less than all") {
  Segmenter strict({.stop_window = 10, .eou_window = 0});
  Segmenter lax({.stop_window = 10, .stop_share = 0.8F, .eou_window = 0});
  const std::string frames = times("#", 10) + "....-#.....";
  CHECK(of_kind(hear(strict, frames), Kind::kFinal).empty());
  CHECK(of_kind(hear(lax, frames), Kind::kFinal).size() == 1);
}
