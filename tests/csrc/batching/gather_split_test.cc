#include "batching/gather_split.h"

#include <doctest/doctest.h>

#include <array>
#include <functional>
#include <random>

#include "requests.h"

using namespace headrace;
using namespace headrace::testing;

namespace {

constexpr std::array kDtypes = {DType::kBool,  DType::kUint8, DType::kInt16, DType::kFp16,
                                DType::kInt32, DType::kFp32,  DType::kInt64, DType::kFp64,
                                DType::kBf16,  DType::kBytes};

// Answers with what it was given: output i is input i. `owned`: with an owner, or from its own
// memory.
class IdentityInstance final : public Instance {
 public:
  IdentityInstance(std::vector<DType> dtypes, bool owned)
      : dtypes_(std::move(dtypes)), owned_(owned), tensors_(dtypes_.size()) {}

  Result<std::span<std::byte>> input(std::size_t index, const Shape& shape,
                                     std::size_t bytes) override {
    BackendOutput& tensor = tensors_.at(index);
    tensor.owner = BufferRef::allocate(bytes);
    tensor.tensor = {dtypes_[index], shape, std::as_const(tensor.owner).span()};
    return tensor.owner.span();
  }
  Status omit(std::size_t index) override {
    tensors_.at(index) = {};
    omitted.push_back(index);
    return {};
  }
  Status run() override { return {}; }
  Result<BackendOutput> output(std::size_t index) override {
    BackendOutput answered = tensors_.at(index);
    if (!owned_) answered.owner.reset();
    if (change) change(answered);
    return answered;
  }
  const Shape& shape(std::size_t index) const { return tensors_[index].tensor.shape; }

  std::vector<std::size_t> omitted;
  std::function<void(BackendOutput&)> change;

 private:
  std::vector<DType> dtypes_;
  bool owned_;
  std::vector<BackendOutput> tensors_;
};

std::string random_bytes(std::mt19937& random, DType dtype, uint64_t elements) {
  std::string bytes;
  if (dtype == DType::kBytes) {
    for (uint64_t i = 0; i < elements; ++i) {
      std::string element(random() % 9, '\0');
      for (char& c : element) c = static_cast<char>(random());
      bytes += strings({element});
    }
    return bytes;
  }
  bytes.resize(elements * dtype_size(dtype));
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

// What check_request would bind.
void bind(const ModelSpec& spec, Request& request) {
  for (const TensorSpec& input : spec.inputs) {
    request.input_of.push_back(Request::kAbsent);
    for (uint32_t i = 0; i < request.inputs.size(); ++i) {
      if (request.inputs[i].name == input.name) request.input_of.back() = i;
    }
  }
  if (spec.batching() && !request.inputs.empty()) request.rows = request.inputs[0].tensor.shape[0];
}

struct Fixture {
  Collector collector;
  ModelSpec spec;
  Batch batch;

  Fixture(DType dtype, std::vector<int64_t> dims, int64_t max_batch_size) {
    spec.name = "m";
    spec.max_batch_size = max_batch_size;
    spec.inputs = {tensor_spec("X", dtype, dims)};
    spec.outputs = {tensor_spec("Y", dtype, dims)};
  }
  Request& add(Shape shape, std::string bytes) {
    batch.requests.push_back(
        make_request(collector, {{"X", spec.inputs[0].dtype, shape, std::move(bytes)}}));
    bind(spec, *batch.requests.back());
    batch.rows += batch.requests.back()->rows;
    return *batch.requests.back();
  }
};

}  // namespace

TEST_CASE("property: split after gather is the identity") {
  for (uint32_t seed = 0; seed < 600; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto pick = [&](uint32_t n) { return random() % n; };
    Collector collector;
    ModelSpec spec;
    spec.name = "m";
    const bool batching = pick(4) != 0;
    spec.max_batch_size = batching ? 64 : 0;
    const std::size_t tensors = 1 + pick(3);
    std::vector<DType> dtypes(tensors);
    std::vector<Shape> client_rows(tensors);
    std::vector<Shape> backend_rows(tensors);
    for (std::size_t i = 0; i < tensors; ++i) {
      TensorSpec in = tensor_spec("X" + std::to_string(i), kDtypes[pick(kDtypes.size())], {});
      // The model's own order differs from the spec's.
      in.backend_index = tensors - 1 - i;
      dtypes[in.backend_index] = in.dtype;
      const std::size_t rank = pick(4);
      for (std::size_t d = 0; d < rank; ++d) {
        const int64_t size = pick(5);
        client_rows[i].push_back(size);
        in.dims.push_back(pick(2) == 0 ? -1 : size);
      }
      backend_rows[i] = client_rows[i];
      if (pick(3) == 0) {  // the backend sees ones around the same dims
        in.reshape = in.dims;
        in.reshape->insert(in.reshape->begin(), 1);
        in.reshape->push_back(1);
        backend_rows[i] = Shape{1};
        for (const int64_t dim : client_rows[i]) backend_rows[i].push_back(dim);
        backend_rows[i].push_back(1);
      }
      spec.inputs.push_back(in);
      in.name = "Y" + std::to_string(i);
      spec.outputs.push_back(in);
    }

    Batch batch;
    std::vector<std::vector<TestInput>> sent;
    const std::size_t requests = batching ? 1 + pick(6) : 1;
    for (std::size_t r = 0; r < requests; ++r) {
      const int64_t rows = 1 + pick(4);
      std::vector<TestInput> inputs;
      for (std::size_t i = 0; i < tensors; ++i) {
        Shape shape;
        if (batching) shape.push_back(rows);
        for (const int64_t dim : client_rows[i]) shape.push_back(dim);
        inputs.push_back({spec.inputs[i].name, spec.inputs[i].dtype, shape,
                          random_bytes(random, spec.inputs[i].dtype, *shape.element_count())});
      }
      std::vector<std::string> outputs;
      if (pick(2) == 0) outputs = {spec.outputs[pick(static_cast<uint32_t>(tensors))].name};
      batch.requests.push_back(make_request(collector, inputs, r, outputs));
      bind(spec, *batch.requests.back());
      batch.rows += batch.requests.back()->rows;
      sent.push_back(std::move(inputs));
    }

    IdentityInstance instance(dtypes, pick(2) == 0);
    REQUIRE(gather(batch, spec, instance));
    for (std::size_t i = 0; i < tensors; ++i) {
      Shape expected;
      if (batching) expected.push_back(batch.rows);
      for (const int64_t dim : backend_rows[i]) expected.push_back(dim);
      CHECK(instance.shape(spec.inputs[i].backend_index) == expected);
    }
    const Status status = split(batch, spec, instance);
    CAPTURE(status.message());
    REQUIRE(status);
    for (std::size_t r = 0; r < requests; ++r) {
      const Request& request = *batch.requests[r];
      const std::vector<OutputTensor>& outputs = request.response.outputs;
      REQUIRE(outputs.size() == (request.outputs.empty() ? tensors : request.outputs.size()));
      for (std::size_t o = 0; o < outputs.size(); ++o) {
        const std::string name =
            request.outputs.empty() ? spec.outputs[o].name : std::string(request.outputs[o].name);
        const TestInput& input = sent[r][*spec.find_output(name)];
        CHECK(outputs[o].name == name);
        CHECK(outputs[o].tensor.dtype == input.dtype);
        CHECK(outputs[o].tensor.shape == input.shape);
        CHECK(text_of(outputs[o].tensor.data) == input.bytes);
      }
    }
  }
}

TEST_CASE("outputs come in the order the request named them") {
  Fixture f(DType::kInt8, {1}, 8);
  f.spec.outputs = {tensor_spec("A", DType::kInt8, {1}), tensor_spec("B", DType::kInt8, {1})};
  Request& request = f.add({1, 1}, "x");
  request.outputs = {{"B", 0}, {"A", 0}};
  IdentityInstance instance({DType::kInt8}, true);
  REQUIRE(gather(f.batch, f.spec, instance));
  REQUIRE(split(f.batch, f.spec, instance));
  CHECK(request.response.outputs[0].name == "B");
  CHECK(request.response.outputs[1].name == "A");
}

TEST_CASE("owned outputs are not copied, others once a batch") {
  for (const bool owned : {true, false}) {
    Fixture f(DType::kInt8, {2}, 8);
    f.add({1, 2}, "ab");
    f.add({2, 2}, "cdef");
    IdentityInstance instance({DType::kInt8}, owned);
    REQUIRE(gather(f.batch, f.spec, instance));
    REQUIRE(split(f.batch, f.spec, instance));
    const OutputTensor& first = f.batch.requests[0]->response.outputs[0];
    const OutputTensor& second = f.batch.requests[1]->response.outputs[0];
    CHECK((first.tensor.data.data() == instance.output(0)->tensor.data.data()) == owned);
    CHECK(second.tensor.data.data() == first.tensor.data.data() + 2);
    CHECK(second.owner.data() == first.owner.data());
    CHECK(text_of(second.tensor.data) == "cdef");
  }
}

TEST_CASE("an optional input that the batch left out is omitted") {
  Fixture f(DType::kInt8, {1}, 8);
  f.spec.inputs.push_back(tensor_spec("MASK", DType::kInt8, {1}));
  f.spec.inputs.back().optional = true;
  f.spec.inputs.back().backend_index = 1;
  f.add({1, 1}, "x");
  IdentityInstance instance({DType::kInt8, DType::kInt8}, true);
  REQUIRE(gather(f.batch, f.spec, instance));
  CHECK(instance.omitted == std::vector<std::size_t>{1});
}

TEST_CASE("what a backend answers wrongly is INTERNAL and says what is wrong") {
  struct Case {
    DType dtype;
    std::function<void(BackendOutput&)> change;
    std::string text;
  };
  static std::array<std::byte, 64> elsewhere{};
  const auto resize = [](BackendOutput& output, std::size_t size) {
    output.owner = BufferRef::allocate(size);
    std::fill_n(output.owner.data(), size, std::byte{0xff});
    output.tensor.data = std::as_const(output.owner).span();
  };
  const std::vector<Case> cases = {
      {DType::kInt8, [](BackendOutput& o) { o.tensor.dtype = DType::kFp32; }, "data-type 'FP32'"},
      {DType::kInt8,
       [](BackendOutput& o) {
         o.tensor.shape = {3, 2};
       },
       "shape [3,2], expected [2,2]"},
      {DType::kInt8,
       [](BackendOutput& o) {
         o.tensor.shape = {2, 3};
       },
       "shape [2,3]"},
      {DType::kInt8, [](BackendOutput& o) { o.tensor.shape = {2}; }, "shape [2]"},
      {DType::kInt8, [](BackendOutput& o) { o.tensor.shape = {}; }, "shape []"},
      {DType::kInt8,
       [](BackendOutput& o) {
         o.tensor.shape = {-2, 2};
       },
       "shape [-2,2]"},
      {DType::kInt8, [&](BackendOutput& o) { resize(o, 3); }, "3 bytes for shape [2,2] of INT8"},
      {DType::kInt8, [&](BackendOutput& o) { resize(o, 5); }, "5 bytes"},
      {DType::kInt8, [](BackendOutput& o) { o.tensor.data = {}; }, "0 bytes"},
      {DType::kInt8, [](BackendOutput& o) { o.tensor.data = std::span(elsewhere).first(4); },
       "outside the memory of its owner"},
      {DType::kBytes, [&](BackendOutput& o) { resize(o, 16); }, "not the 4 string elements"},
      {DType::kBytes, [&](BackendOutput& o) { resize(o, 0); }, "not the 4 string elements"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.text);
    Fixture f(c.dtype, {2}, 8);
    const std::string row = c.dtype == DType::kBytes ? strings({"a", "b"}) : "ab";
    f.add({1, 2}, row);
    f.add({1, 2}, row);
    IdentityInstance instance({c.dtype}, true);
    REQUIRE(gather(f.batch, f.spec, instance));
    instance.change = c.change;
    const Status status = split(f.batch, f.spec, instance);
    CAPTURE(status.message());
    CHECK(status.code() == StatusCode::kInternal);
    CHECK(status.message().find("output 'Y'") != std::string::npos);
    CHECK(status.message().find(c.text) != std::string::npos);
  }
}

TEST_CASE("an output whose dims overflow is refused, also when the spec leaves them open") {
  Fixture f(DType::kFp64, {-1, -1}, 8);
  f.add({1, 1, 1}, std::string(8, 'x'));
  IdentityInstance instance({DType::kFp64}, true);
  REQUIRE(gather(f.batch, f.spec, instance));
  for (const Shape& shape : {Shape{1, INT64_MAX, 2}, Shape{1, INT64_MAX, 1}, Shape{1, -1, 1}}) {
    instance.change = [&](BackendOutput& output) { output.tensor.shape = shape; };
    CHECK(split(f.batch, f.spec, instance).code() == StatusCode::kInternal);
  }
}

TEST_CASE("an instance that offers too little memory gets nothing written") {
  class Small final : public Instance {
   public:
    Result<std::span<std::byte>> input(std::size_t, const Shape&, std::size_t) override {
      return std::span<std::byte>(memory_);
    }
    Status omit(std::size_t) override { return {}; }
    Status run() override { return {}; }
    Result<BackendOutput> output(std::size_t) override { return BackendOutput{}; }

   private:
    std::array<std::byte, 3> memory_{};
  };
  Fixture f(DType::kInt8, {4}, 8);
  f.add({1, 4}, "abcd");
  Small instance;
  CHECK(gather(f.batch, f.spec, instance).code() == StatusCode::kInternal);
}
