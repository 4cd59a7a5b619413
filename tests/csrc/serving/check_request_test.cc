#include "serving/check_request.h"

#include <doctest/doctest.h>

#include <limits>

#include "requests.h"

using namespace headrace;
using namespace headrace::testing;

namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// "m", rows <= 8: X FP32 [4], S BYTES [-1], optional MASK INT64 [2]; outputs Y, T.
ModelSpec batching_spec() {
  ModelSpec spec;
  spec.name = "m";
  spec.max_batch_size = 8;
  spec.inputs = {tensor_spec("X", DType::kFp32, {4}), tensor_spec("S", DType::kBytes, {-1}),
                 tensor_spec("MASK", DType::kInt64, {2})};
  spec.inputs[2].optional = true;
  spec.outputs = {tensor_spec("Y", DType::kFp32, {10}), tensor_spec("T", DType::kBytes, {1})};
  return spec;
}

// "m", no batching: X FP32 [-1,16].
ModelSpec plain_spec() {
  ModelSpec spec;
  spec.name = "m";
  spec.inputs = {tensor_spec("X", DType::kFp32, {-1, 16})};
  spec.outputs = {tensor_spec("Y", DType::kFp32, {-1})};
  return spec;
}

std::string fp32(std::size_t n) { return std::string(4 * n, '\0'); }

TestInput x(Shape shape, std::string bytes) { return {"X", DType::kFp32, shape, std::move(bytes)}; }
TestInput s(Shape shape, std::string bytes) {
  return {"S", DType::kBytes, shape, std::move(bytes)};
}

struct Checked {
  Status status;
  int64_t rows;
  std::vector<uint32_t> input_of;
};

Checked check(const ModelSpec& spec, const std::vector<TestInput>& inputs,
              const std::vector<std::string>& outputs = {}, std::string_view id = "",
              int64_t classification = 0) {
  Collector collector;
  const RequestPtr request = make_request(collector, inputs, 0, outputs);
  request->id = id;
  for (RequestedOutput& output : request->outputs) output.classification = classification;
  const Status status = check_request(spec, *request);
  return {status, request->rows, request->input_of};
}

void refused(const Checked& checked, const std::string& text) {
  CHECK(checked.status.code() == StatusCode::kInvalidArgument);
  CHECK(checked.status.message() == text);
}

const std::string kNoId = "[request id: <id_unknown>] ";
const std::string kNote =
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be "
    "prepended to each input shape. If you want to specify the full shape including the batch dim "
    "in "
    "your input dims config, try setting max_batch_size to zero. See the model configuration docs "
    "for more info on max_batch_size.";

}  // namespace

TEST_CASE("a good request is bound: inputs in any order, optional ones left out, rows counted") {
  const Checked full =
      check(batching_spec(), {{"MASK", DType::kInt64, {2, 2}, std::string(32, 'm')},
                              s({2, 1}, strings({"a", ""})),
                              x({2, 4}, fp32(8))});
  CHECK(full.status.message() == "");
  CHECK(full.rows == 2);
  CHECK(full.input_of == std::vector<uint32_t>{2, 1, 0});
  const Checked without = check(batching_spec(), {x({1, 4}, fp32(4)), s({1, 0}, "")}, {"T"});
  CHECK(without.status);
  CHECK(without.input_of == std::vector<uint32_t>{0, 1, Request::kAbsent});
}

TEST_CASE("without batching dim 0 is a dim like others, and may be zero") {
  CHECK(check(plain_spec(), {x({3, 16}, fp32(48))}).rows == 1);
  CHECK(check(plain_spec(), {x({0, 16}, "")}).status);
}

TEST_CASE("zero-size dims that are not the batch's are legal, a batch of 0 is not") {
  ModelSpec spec = batching_spec();
  CHECK(check(spec, {x({8, 4}, fp32(32)), s({8, 0}, "")}).status);
  refused(check(spec, {x({0, 4}, ""), s({0, 0}, "")}),
          kNoId + "inference request batch-size must be >= 1 for 'm'");
}

TEST_CASE("number and names of inputs") {
  refused(check(plain_spec(), {}),
          kNoId +
              "expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing "
              "required input(s) ['X']. Please provide all required input(s).");
  refused(
      check(batching_spec(), {x({1, 4}, fp32(4))}, {}, "7"),
      "[request id: 7] expected number of inputs between 2 and 3 but got 1 inputs for model 'm'. "
      "Got input(s) ['X'], but missing required input(s) ['S']. Please provide all required "
      "input(s).");
  // Enough inputs, but not the required ones.
  const Checked wrong = check(
      batching_spec(), {x({1, 4}, fp32(4)), {"MASK", DType::kInt64, {1, 2}, std::string(16, 'm')}});
  CHECK(wrong.status.message().find("missing required input(s) ['S']") != std::string::npos);
  refused(check(plain_spec(), {{"Z", DType::kFp32, {1, 16}, fp32(16)}}),
          "unexpected inference input 'Z' for model 'm'");
  refused(check(batching_spec(), {x({1, 4}, fp32(4)), x({1, 4}, fp32(4))}),
          kNoId + "input 'X' already exists in request");
}

TEST_CASE("datatype") {
  refused(check(plain_spec(), {{"X", DType::kInt32, {1, 16}, fp32(16)}}),
          kNoId + "inference input 'X' data-type is 'INT32', but model 'm' expects 'FP32'");
  refused(check(plain_spec(), {{"X", DType::kInvalid, {1, 16}, fp32(16)}}),
          kNoId + "inference input 'X' data-type is '<invalid>', but model 'm' expects 'FP32'");
}

TEST_CASE("shape") {
  refused(check(plain_spec(), {x({1, 15}, fp32(15))}),
          kNoId + "unexpected shape for input 'X' for model 'm'. Expected [-1,16], got [1,15].");
  const std::string batched = "unexpected shape for input 'X' for model 'm'. Expected [-1,4], got ";
  refused(check(batching_spec(), {x({1, 5}, fp32(5)), s({1, 0}, "")}),
          kNoId + batched + "[1,5]." + kNote);
  refused(check(batching_spec(), {x({1}, fp32(1)), s({1, 0}, "")}),
          kNoId + batched + "[1]." + kNote);
  refused(check(batching_spec(), {x({}, fp32(1)), s({1, 0}, "")}),
          kNoId + "input 'X' has no shape but model requires batch dimension for 'm'");
  for (const Shape& shape : {Shape{-1, 16}, Shape{-7, 16}, Shape{1, -1}}) {
    refused(check(plain_spec(), {x(shape, "")}),
            kNoId + "All input dimensions should be specified for input 'X' for model 'm', got " +
                shape.to_string());
  }
  refused(
      check(batching_spec(), {x({-1, 4}, ""), s({-1, 0}, "")}),
      kNoId + "All input dimensions should be specified for input 'X' for model 'm', got [-1,4]");
}

TEST_CASE("batch size") {
  refused(check(batching_spec(), {x({9, 4}, fp32(36)), s({9, 0}, "")}),
          kNoId + "inference request batch-size must be <= 8 for 'm'");
  refused(check(batching_spec(), {x({kMax, 4}, ""), s({kMax, 0}, "")}),
          kNoId + "inference request batch-size must be <= 8 for 'm'");
  refused(check(batching_spec(), {x({2, 4}, fp32(8)), s({1, 0}, "")}),
          kNoId + "input 'S' batch size does not match other inputs for 'm'");
}

TEST_CASE("byte size, also where the product of the dims overflows") {
  refused(check(plain_spec(), {x({1, 16}, fp32(15))}),
          kNoId + "input byte size mismatch for input 'X' for model 'm'. Expected 64, got 60");
  for (const int64_t dim : {kMax, kMax / 16, int64_t{1} << 60, int64_t{1} << 58}) {
    const Checked checked = check(plain_spec(), {x({dim, 16}, "")});
    CHECK(checked.status.code() == StatusCode::kInvalidArgument);
  }
  ModelSpec wide = plain_spec();
  wide.inputs[0].dims = {-1, -1, -1};
  CHECK(check(wide, {x({int64_t{1} << 32, int64_t{1} << 32, 1}, "")}).status.code() ==
        StatusCode::kInvalidArgument);
  CHECK(check(wide, {x({kMax, kMax, 0}, "")}).status);
}

TEST_CASE("string elements") {
  const auto send = [](Shape shape, std::string bytes) {
    return check(batching_spec(), {x({1, 4}, fp32(4)), s(shape, std::move(bytes))});
  };
  const std::string of = " for inference input 'S' for model 'm'";
  refused(send({1, 1}, strings({"a", "b"})),
          kNoId + "unexpected number of string elements 2" + of + ", expecting 1");
  refused(send({1, 3}, strings({"a", "b"})), kNoId + "expected 3 string elements" + of + ", got 2");
  refused(send({1, 1}, strings({"abc"}).substr(0, 5)),
          kNoId + "expected 1 string elements" + of + ", got 0");
  const Checked cut = send({1, 1}, "\1\0\0");
  CHECK(cut.status.message().starts_with(kNoId + "incomplete string length indicator" + of));
  CHECK(send({1, kMax}, strings({"a"})).status.code() == StatusCode::kInvalidArgument);
}

TEST_CASE("requested outputs") {
  const std::vector<TestInput> good = {x({1, 16}, fp32(16))};
  refused(check(plain_spec(), good, {"Z"}), "unexpected inference output 'Z' for model 'm'");
  refused(check(plain_spec(), good, {"Y", "Y"}), kNoId + "output 'Y' already exists in request");
  CHECK(check(plain_spec(), good, {"Y"}, "", 3).status);
  CHECK(check(plain_spec(), good, {"Y"}, "", -1).status.code() == StatusCode::kInvalidArgument);
  refused(check(batching_spec(), {x({1, 4}, fp32(4)), s({1, 0}, "")}, {"T"}, "", 3),
          kNoId + "class result not available for output 'T' due to unsupported type 'BYTES'");
}
