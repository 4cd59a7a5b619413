#include "routing/traffic_split.h"

#include <doctest/doctest.h>

#include <cmath>
#include <map>

using namespace headrace;

namespace {

class Version final : public Servable {
 public:
  void submit(RequestPtr request) override {
    answer(std::move(request), Status::internal("nobody submits here"));
  }
  const ModelSpec& spec() const override { return spec_; }

 private:
  ModelSpec spec_;
};

class Nowhere final : public Completion {
 public:
  void complete(RequestPtr) noexcept override {}
};

Arm arm(const char* label, double share) {
  return {std::make_shared<const std::string>(label), std::make_shared<Version>(), share};
}

TrafficSplit canary(double share, std::string_view salt = "digits/8") {
  return TrafficSplit({arm("canary", share), arm("stable", 1 - share)}, "user", salt);
}

std::string chosen(const TrafficSplit& split, const Request& request) {
  return *split.choose(request).label;
}

// By arm, for so many users.
std::map<std::string, int> users(const TrafficSplit& split, int count) {
  std::map<std::string, int> arms;
  Nowhere nowhere;
  Request request(nowhere);
  for (int i = 0; i < count; ++i) {
    const std::string user = "user-" + std::to_string(i);
    request.parameters = {{"user", std::string_view(user)}};
    ++arms[chosen(split, request)];
  }
  return arms;
}

}  // namespace

TEST_CASE("each arm has its share of the keys") {
  constexpr int kUsers = 20000;
  for (const double share : {0.0, 0.01, 0.05, 0.5, 0.99, 1.0}) {
    CAPTURE(share);
    const int canaries = users(canary(share), kUsers)["canary"];
    const double sigma = std::sqrt(share * (1 - share) * kUsers);
    CHECK(std::abs(canaries - share * kUsers) <= 5 * sigma);  // exactly, at 0 and 1
  }
}

TEST_CASE("a key has the same arm each time, whatever else its requests say") {
  const TrafficSplit split = canary(0.5);
  Nowhere nowhere;
  for (int i = 0; i < 200; ++i) {
    const std::string user = std::to_string(i);
    Request first(nowhere);
    first.parameters = {{"user", std::string_view(user)}};
    Request second(nowhere);
    second.id = "another";
    second.parameters = {{"priority", int64_t{1}}, {"user", std::string_view(user)}};
    CHECK(chosen(split, first) == chosen(split, second));
  }
}

TEST_CASE("who was in the candidate's share stays there when it grows") {
  const TrafficSplit small = canary(0.05);
  const TrafficSplit large = canary(0.2);
  Nowhere nowhere;
  Request request(nowhere);
  int stayed = 0;
  for (int64_t user = 0; user < 5000; ++user) {
    request.parameters = {{"user", user}};  // numbers are keys too
    if (chosen(small, request) != "canary") continue;
    REQUIRE(chosen(large, request) == "canary");
    ++stayed;
  }
  CHECK(stayed > 100);
}

TEST_CASE("splits of different salts are independent of each other") {
  const TrafficSplit one = canary(0.5, "a");
  const TrafficSplit other = canary(0.5, "b");
  Nowhere nowhere;
  Request request(nowhere);
  int both = 0;
  for (int64_t user = 0; user < 10000; ++user) {
    request.parameters = {{"user", user}};
    both += chosen(one, request) == "canary" && chosen(other, request) == "canary" ? 1 : 0;
  }
  CHECK(std::abs(both - 2500) < 250);
}

TEST_CASE("without the key the id decides; without an id each request is on its own") {
  const TrafficSplit split = canary(0.5);
  Nowhere nowhere;
  Request request(nowhere);
  request.id = "same";
  const std::string first = chosen(split, request);
  for (int i = 0; i < 50; ++i) REQUIRE(chosen(split, request) == first);
  request.id = {};
  int canaries = 0;
  for (int i = 0; i < 10000; ++i) canaries += chosen(split, request) == "canary" ? 1 : 0;
  CHECK(std::abs(canaries - 5000) < 500);
}

TEST_CASE("shares are relative to their sum") {
  const TrafficSplit split({arm("a", 1), arm("b", 0), arm("c", 3)}, "user", "");
  std::map<std::string, int> arms = users(split, 8000);
  CHECK(arms["b"] == 0);
  CHECK(std::abs(arms["a"] - 2000) < 250);
  CHECK(arms["a"] + arms["c"] == 8000);
}
