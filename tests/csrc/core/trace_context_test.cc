#include "core/trace_context.h"

#include <doctest/doctest.h>

#include <string>

using namespace headrace;

namespace {

const std::string kTrace = "4bf92f3577b34da6a3ce929d0e0e4736";
const std::string kParent = "00f067aa0ba902b7";
const std::string kGood = "00-" + kTrace + "-" + kParent + "-01";

}  // namespace

TEST_CASE("a traceparent names trace, parent and whether it is sampled") {
  const auto parent = parse_traceparent(kGood);
  REQUIRE(parent);
  CHECK(parent->trace_id[0] == 0x4b);
  CHECK(parent->trace_id[15] == 0x36);
  CHECK(parent->parent_id[1] == 0xf0);
  CHECK(parent->sampled);
  CHECK_FALSE(parse_traceparent("00-" + kTrace + "-" + kParent + "-00")->sampled);
  CHECK(parse_traceparent("00-" + kTrace + "-" + kParent + "-ff")->sampled);
}

TEST_CASE("a later version may say more, behind a dash") {
  CHECK(parse_traceparent("cc-" + kTrace + "-" + kParent + "-01-more"));
  CHECK(parse_traceparent("cc-" + kTrace + "-" + kParent + "-01"));
  CHECK_FALSE(parse_traceparent("cc-" + kTrace + "-" + kParent + "-01more"));
  CHECK_FALSE(parse_traceparent(kGood + "-more"));
}

TEST_CASE("what is not valid is ignored") {
  CHECK_FALSE(parse_traceparent(""));
  CHECK_FALSE(parse_traceparent("ff-" + kTrace + "-" + kParent + "-01"));
  CHECK_FALSE(parse_traceparent("00-" + std::string(32, '0') + "-" + kParent + "-01"));
  CHECK_FALSE(parse_traceparent("00-" + kTrace + "-" + std::string(16, '0') + "-01"));
  // Every character matters: no prefix, no upper case, nothing else in its place.
  for (std::size_t i = 0; i < kGood.size(); ++i) {
    CHECK_FALSE(parse_traceparent(kGood.substr(0, i)));
    for (const char wrong : {'G', 'A', ' ', '\0'}) {
      std::string text = kGood;
      text[i] = wrong;
      CHECK_FALSE(parse_traceparent(text));
    }
  }
}
