#include "cache/request_key.h"

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "requests.h"

using namespace headrace;
using testing::make_request;
using testing::TestInput;

namespace {

const TestInput kX{"x", DType::kFp32, {1, 2}, "12345678"};

// What is the same question as `request`, by every way of telling.
bool same(const Request& request, const Request& other) {
  const BufferRef key = key_of(7, request);
  CHECK(key.size() == key_size(request));
  const bool equal = matches(std::as_const(key).span(), 7, other);
  CHECK(equal == (hash_key(7, request, 1) == hash_key(7, other, 1)));
  CHECK(equal == (key.view() == key_of(7, other).view()));
  return equal;
}

}  // namespace

TEST_CASE("equal inputs are the same question, whatever the request is called") {
  testing::Collector nobody;
  const RequestPtr one = make_request(nobody, {kX}, 1);
  const RequestPtr two = make_request(nobody, {kX}, 2);
  two->id = "two";
  two->priority = 3;
  two->parameters.push_back({"user", std::string_view("ann")});
  CHECK(same(*one, *two));
}

TEST_CASE("whatever the model sees makes another question") {
  testing::Collector nobody;
  const RequestPtr one = make_request(nobody, {kX}, 0, {"y"});
  const std::vector<std::pair<TestInput, std::vector<std::string>>> others = {
      {{"z", DType::kFp32, {1, 2}, "12345678"}, {"y"}},
      {{"x", DType::kInt32, {1, 2}, "12345678"}, {"y"}},
      {{"x", DType::kFp32, {2, 1}, "12345678"}, {"y"}},
      {{"x", DType::kFp32, {1, 2}, "12345679"}, {"y"}},
      {{"x", DType::kFp32, {1, 2}, "1234567"}, {"y"}},
      {{"x", DType::kFp32, {1, 2}, ""}, {"y"}},
      {{"x", DType::kFp32, {}, "12345678"}, {"y"}},
      {kX, {}},
      {kX, {"y", "y"}},
      {kX, {"w"}},
  };
  for (const auto& [input, outputs] : others) {
    CHECK_FALSE(same(*one, *make_request(nobody, {input}, 0, outputs)));
  }
  CHECK_FALSE(same(*one, *make_request(nobody, {kX, kX}, 0, {"y"})));
  CHECK_FALSE(same(*one, *make_request(nobody, {}, 0, {"y"})));
  const RequestPtr classes = make_request(nobody, {kX}, 0, {"y"});
  classes->outputs.front().classification = 3;
  CHECK_FALSE(same(*one, *classes));
}

TEST_CASE("parts do not run into each other") {
  testing::Collector nobody;
  const auto with = [&](const std::string& name, const std::string& bytes) {
    return make_request(nobody, {{name, DType::kBytes, {1}, bytes}});
  };
  CHECK_FALSE(same(*with("ab", "c"), *with("a", "bc")));
  CHECK_FALSE(same(*with("", "abc"), *with("abc", "")));
}

TEST_CASE("servables that share a cache do not share answers, nor seeds hashes") {
  testing::Collector nobody;
  const RequestPtr request = make_request(nobody, {kX});
  const BufferRef key = key_of(1, *request);
  CHECK(matches(std::as_const(key).span(), 1, *request));
  CHECK_FALSE(matches(std::as_const(key).span(), 2, *request));
  CHECK(hash_key(1, *request, 5) != hash_key(2, *request, 5));
  CHECK(hash_key(1, *request, 5) != hash_key(1, *request, 6));
  CHECK_FALSE(matches(std::as_const(key).span().first(key.size() - 1), 1, *request));
  CHECK_FALSE(matches({}, 1, *request));
}
