#include "base/status.h"

#include <doctest/doctest.h>

#include <memory>

using namespace headrace;

TEST_CASE("a Status is OK unless it was given a code, and carries its text") {
  CHECK(Status().ok());
  CHECK(Status::ok_status());
  const Status status = Status::not_found("no such model");
  CHECK_FALSE(status);
  CHECK(status.code() == StatusCode::kNotFound);
  CHECK(status.message() == "no such model");
}

TEST_CASE("a Status may say when trying again makes sense; it costs no space") {
  using std::chrono::milliseconds;
  CHECK_FALSE(Status::unavailable("").pushback());
  const Status status = Status::resource_exhausted("full").with_pushback(milliseconds(25));
  CHECK(status.code() == StatusCode::kResourceExhausted);
  CHECK(status.message() == "full");
  CHECK(status.pushback() == milliseconds(25));
  CHECK(Status::unavailable("").with_pushback(milliseconds(-3)).pushback() == milliseconds(0));
  CHECK(Status::unavailable("").with_pushback(milliseconds::max()).pushback() ==
        milliseconds(INT32_MAX));
  CHECK(sizeof(Status) == 8 + sizeof(std::string));
}

TEST_CASE("codes have gRPC's numbers") {
  CHECK(static_cast<int>(StatusCode::kCancelled) == 1);
  CHECK(static_cast<int>(StatusCode::kInvalidArgument) == 3);
  CHECK(static_cast<int>(StatusCode::kResourceExhausted) == 8);
  CHECK(static_cast<int>(StatusCode::kInternal) == 13);
  CHECK(static_cast<int>(StatusCode::kUnavailable) == 14);
  CHECK(static_cast<int>(StatusCode::kUnauthenticated) == 16);
}

TEST_CASE("a Result is a value or the Status that says why not") {
  Result<int> seven = 7;
  REQUIRE(seven);
  CHECK(*seven == 7);
  const Result<int> none = Status::internal("broken");
  CHECK_FALSE(none.has_value());
  CHECK(none.error().message() == "broken");
}

TEST_CASE("a Result hands on values that only move") {
  Result<std::unique_ptr<int>> owner = std::make_unique<int>(3);
  REQUIRE(owner);
  const std::unique_ptr<int> taken = *std::move(owner);
  CHECK(*taken == 3);
}
