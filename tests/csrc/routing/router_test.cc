#include "routing/router.h"

#include <doctest/doctest.h>

#include <string>
#include <tuple>

using namespace headrace;

namespace {

// Only its identity matters: a table hands out Servables and never uses them.
class Version final : public Servable {
 public:
  void submit(RequestPtr request) override {
    answer(std::move(request), Status::internal("nobody submits here"));
  }
  const ModelSpec& spec() const override { return spec_; }

 private:
  ModelSpec spec_;
};

struct Found {
  Servable* servable = nullptr;
  StatusCode code = StatusCode::kOk;
  std::string text;
};

Found find(const RouteTable& table, std::string_view model, std::string_view version) {
  const auto result = table.find(model, version);
  if (!result) return {nullptr, result.error().code(), result.error().message()};
  return {result->get(), StatusCode::kOk, ""};
}

const std::shared_ptr<Version> kOne = std::make_shared<Version>();
const std::shared_ptr<Version> kSeven = std::make_shared<Version>();

RouteTable table() {
  std::map<std::string, ModelRoutes, std::less<>> models;
  models["resnet"] = {{{1, kOne}, {7, kSeven}, {8, nullptr}}, kSeven};
  models["loading"] = {{{1, nullptr}}, nullptr};
  models["unloaded"] = {};
  models[""] = {{{1, kOne}}, kOne};
  return RouteTable(std::move(models));
}

std::string not_an_integer(const std::string& version) {
  return "failed to get model version from specified version string '" + version +
         "' (details: stol), version should be an integral value > 0";
}

}  // namespace

TEST_CASE("a version is found by its number, the default without one") {
  const RouteTable routes = table();
  CHECK(find(routes, "resnet", "1").servable == kOne.get());
  CHECK(find(routes, "resnet", "7").servable == kSeven.get());
  CHECK(find(routes, "resnet", "").servable == kSeven.get());
  CHECK(find(routes, "", "").servable == kOne.get());  // a name like any other
}

TEST_CASE("leading zeros are the same number, as for Triton's stol") {
  const RouteTable routes = table();
  CHECK(find(routes, "resnet", "01").servable == kOne.get());
  CHECK(find(routes, "resnet", "0000000000000000000000000007").servable == kSeven.get());
  CHECK(find(routes, "resnet", "009").text ==
        "Request for unknown model: 'resnet' version 9 is not found");
}

TEST_CASE("unknown models and versions are NOT_FOUND with Triton's texts") {
  const RouteTable routes = table();
  struct Case {
    const char* model;
    const char* version;
    const char* text;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"nope", "", "Request for unknown model: 'nope' is not found"},
           {"nope", "7", "Request for unknown model: 'nope' is not found"},
           {"Resnet", "", "Request for unknown model: 'Resnet' is not found"},
           {"resnet", "2", "Request for unknown model: 'resnet' version 2 is not found"},
           {"resnet", "9223372036854775807",
            "Request for unknown model: 'resnet' version 9223372036854775807 is not found"},
           {"unloaded", "", "Request for unknown model: 'unloaded' has no available versions"},
           {"loading", "", "Request for unknown model: 'loading' has no available versions"},
           {"unloaded", "1", "Request for unknown model: 'unloaded' version 1 is not found"}}) {
    CAPTURE(c.model);
    CAPTURE(c.version);
    const Found found = find(routes, c.model, c.version);
    CHECK(found.code == StatusCode::kNotFound);
    CHECK(found.text == c.text);
  }
  CHECK(find(RouteTable(), "resnet", "").code == StatusCode::kNotFound);
}

TEST_CASE("while the server starts, what is not found is UNAVAILABLE: clients may try again") {
  const std::shared_ptr<Servable> one = kOne;
  const RouteTable routes({{"loaded", {{{1, one}}, one}}, {"loading", {{{1, nullptr}}, nullptr}}},
                          /*starting=*/true);
  CHECK(find(routes, "loaded", "").servable == one.get());
  for (const auto& [model, version, text] :
       {std::tuple{"loading", "", "'loading' has no available versions"},
        std::tuple{"other", "", "'other' is not found"},
        std::tuple{"other", "1", "'other' is not found"},
        std::tuple{"loaded", "2", "'loaded' version 2 is not found"}}) {
    const Found found = find(routes, model, version);
    CHECK(found.code == StatusCode::kUnavailable);
    CHECK(found.text ==
          std::string("Request for unknown model: ") + text + " yet: the server is starting");
  }
  CHECK(find(routes, "loaded", "x").code == StatusCode::kInvalidArgument);
}

TEST_CASE("a version that is known and not ready is UNAVAILABLE") {
  const RouteTable routes = table();
  for (const auto& [model, version] :
       {std::pair{"resnet", "8"}, std::pair{"resnet", "08"}, std::pair{"loading", "1"}}) {
    const Found found = find(routes, model, version);
    CHECK(found.code == StatusCode::kUnavailable);
    CHECK(found.text == "Request for unknown model: '" + std::string(model) + "' version " +
                            std::to_string(std::stol(version)) + " is not at ready state");
  }
}

TEST_CASE("a version that is no positive integer is INVALID_ARGUMENT, whatever the model") {
  const RouteTable routes = table();
  for (const char* model : {"resnet", "nope", "unloaded"}) {
    // stol would take a number's beginning ("1x") and white space: a typing error is told instead.
    for (const std::string version :
         {"x", "1x", "1.0", "0x1", "1 ", " 1", "+1", "--1", "-", " ", "\t", "1\n", "\xd9\xa1",
          "9223372036854775808", "-9223372036854775809", "99999999999999999999999999"}) {
      CAPTURE(version);
      const Found found = find(routes, model, version);
      CHECK(found.code == StatusCode::kInvalidArgument);
      CHECK(found.text == not_an_integer(version));
    }
    for (const std::string version : {"-1", "0", "-0", "00", "-9223372036854775808"}) {
      CAPTURE(version);
      const Found found = find(routes, model, version);
      CHECK(found.code == StatusCode::kInvalidArgument);
      CHECK(found.text == "invalid model version specified '" + version +
                              "' , version should be an integral value > 0");
    }
  }
  // A NUL is a character like any other, not the end.
  CHECK(find(routes, "resnet", std::string_view("1\0", 2)).code == StatusCode::kInvalidArgument);
  CHECK(find(routes, std::string_view("resnet\0", 7), "1").code == StatusCode::kNotFound);
}

TEST_CASE("a label stands for a version; one that is not ready is UNAVAILABLE") {
  const auto label = [](const char* text) { return std::make_shared<const std::string>(text); };
  std::map<std::string, ModelRoutes, std::less<>> models;
  ModelRoutes& routes = models["resnet"];
  routes.versions = {{1, kOne}, {7, kSeven}};
  routes.default_version = kOne;
  routes.labels["stable"] = {label("stable"), kOne, 0};
  routes.labels["canary"] = {label("canary"), kSeven, 0};
  routes.labels["next"] = {label("next"), nullptr, 0};
  routes.split = TrafficSplit({{label("canary"), kSeven, 1}}, "", "");
  const RouteTable table(std::move(models));
  CHECK(find(table, "resnet", "stable").servable == kOne.get());
  CHECK(find(table, "resnet", "canary").servable == kSeven.get());
  CHECK(find(table, "resnet", "").servable == kOne.get());
  CHECK(find(table, "resnet", "next").code == StatusCode::kUnavailable);
  CHECK(find(table, "resnet", "next").text ==
        "Request for unknown model: 'resnet' version 'next' is not at ready state");
  CHECK(find(table, "resnet", "Stable").text == not_an_integer("Stable"));

  class Nowhere final : public Completion {
   public:
    void complete(RequestPtr) noexcept override {}
  } nowhere;
  const auto route = [&](std::string_view model, std::string_view version) {
    Request request(nowhere);
    request.model_name = model;
    request.model_version = version;
    return table.route(request);
  };
  // Only what names no version is shared out; who names a number gets it and no arm.
  CHECK(route("resnet", "")->servable == kSeven);
  CHECK(*route("resnet", "")->arm == "canary");
  CHECK(route("resnet", "stable")->servable == kOne);
  CHECK(*route("resnet", "stable")->arm == "stable");
  CHECK(route("resnet", "1")->servable == kOne);
  CHECK(route("resnet", "1")->arm == nullptr);
  CHECK(route("resnet", "next").error().code() == StatusCode::kUnavailable);
  CHECK(route("nope", "").error().code() == StatusCode::kNotFound);
}
