// The state machine above TensorRT, on a fake of it (fake_tensorrt.h): profiles, graphs, memory, errors.
#include "backends/tensorrt/tensorrt_instance.h"

#include <doctest/doctest.h>

#include "backends/fake_tensorrt.h"
#include "backends/tensorrt/tensorrt_backend.h"

namespace headrace {
namespace {

struct Setup {
  std::shared_ptr<fake::Log> log = std::make_shared<fake::Log>();
  std::shared_ptr<TensorRtMeter> meter = std::make_shared<TensorRtMeter>();
  std::unique_ptr<TensorRtInstance> instance;

  explicit Setup(const TensorRtOptions& options = {}, int64_t limit = 0) {
    meter->limit = limit;
    Result<std::unique_ptr<TensorRtInstance>> made =
        TensorRtInstance::create(std::make_shared<fake::Engine>(log), meter, options);
    REQUIRE(made);
    instance = std::move(*made);
  }

  // One batch of `rows` rows, its values from `first` on.
  Status run(int64_t rows, float first = 1) {
    const Shape shape{rows, 4};
    const auto count = static_cast<std::size_t>(rows * 4);
    Result<std::span<std::byte>> memory = instance->input(0, shape, count * sizeof(float));
    if (!memory) return memory.error();
    for (std::size_t i = 0; i < count; ++i) {
      reinterpret_cast<float*>(memory->data())[i] = first + static_cast<float>(i);
    }
    if (Status status = instance->run(); !status.ok()) return status;
    Result<BackendOutput> y = instance->output(0);
    if (!y) return y.error();
    CHECK(y->tensor.shape == shape);
    CHECK(y->tensor.data.size() == count * sizeof(float));
    for (std::size_t i = 0; i < count; ++i) {
      const float got = reinterpret_cast<const float*>(y->tensor.data.data())[i];
      if (got != 2 * (first + static_cast<float>(i))) return Status::internal("a wrong value");
    }
    return {};
  }
};

StatusCode code(const Status& status) { return status.code(); }

}  // namespace

TEST_CASE("the profile with the least room to spare takes a batch") {
  const fake::Engine engine(std::make_shared<fake::Log>());
  CHECK(choose_profile(engine.signature(), {Shape{1, 4}}) == 1);
  CHECK(choose_profile(engine.signature(), {Shape{8, 4}}) == 1);
  CHECK(choose_profile(engine.signature(), {Shape{9, 4}}) == 0);
  CHECK(choose_profile(engine.signature(), {Shape{65, 4}}) == std::nullopt);
  CHECK(choose_profile(engine.signature(), {Shape{1, 5}}) == std::nullopt);
  CHECK(choose_profile(engine.signature(), {Shape{4}}) == std::nullopt);
}

TEST_CASE("batches of changing size are right, with graphs and without") {
  for (const bool graphs : {true, false}) {
    Setup s({.graphs = graphs});
    float first = 0;
    for (const int64_t rows : {1, 1, 1, 8, 8, 9, 64, 64, 1, 8, 9, 64, 3, 3, 3}) {
      CAPTURE(rows);
      CHECK(code(s.run(rows, first += 10)) == StatusCode::kOk);
    }
    CHECK((s.log->launches > 0) == graphs);
  }
}

TEST_CASE("a bucket is recorded in its second run and launched from then on") {
  Setup s;
  REQUIRE(s.run(4).ok());
  CHECK(s.log->captures == 0);
  REQUIRE(s.run(4, 7).ok());
  CHECK(s.log->captures == 1);
  CHECK(s.log->launches == 1);
  REQUIRE(s.run(4, 9).ok());
  CHECK(s.log->captures == 1);
  CHECK(s.log->launches == 2);
  CHECK(s.log->enqueues == 2);  // the first run, the recording
  CHECK(s.log->profiles == 1);
}

TEST_CASE("growing memory drops the graphs that hold its addresses") {
  Setup s;
  REQUIRE(s.run(16).ok());  // 256 bytes: the smallest buffers
  REQUIRE(s.run(16).ok());
  CHECK(s.instance->graph_count() == 1);
  REQUIRE(s.run(64).ok());
  CHECK(s.instance->graph_count() == 0);
  REQUIRE(s.run(16, 5).ok());
  REQUIRE(s.run(16, 6).ok());
  CHECK(s.instance->graph_count() == 1);
}

TEST_CASE("at most max_graphs are kept, the one not used for longest goes") {
  Setup s({.max_graphs = 2});
  for (const int64_t rows : {1, 1, 2, 2, 1, 3, 3}) REQUIRE(s.run(rows).ok());
  CHECK(s.instance->graph_count() == 2);
  const int captures = s.log->captures;
  REQUIRE(s.run(1).ok());  // was used after 2
  CHECK(s.log->captures == captures);
}

TEST_CASE("what cannot be recorded is run without") {
  Setup s;
  s.log->cannot_capture = true;
  for (int i = 0; i < 4; ++i) CHECK(code(s.run(4, static_cast<float>(i))) == StatusCode::kOk);
  CHECK(s.log->captures == 1);
  CHECK(s.log->launches == 0);
}

TEST_CASE("requests that do not fit are refused and harm nothing") {
  Setup s;
  REQUIRE(s.run(4).ok());
  const Status status = s.run(65);
  CHECK(status.code() == StatusCode::kInvalidArgument);
  CHECK(status.message().find("x [1,4] to [64,4]; x [1,4] to [8,4]") != std::string::npos);
  CHECK(code(s.instance->run()) == StatusCode::kInvalidArgument);  // no input
  CHECK_FALSE(s.instance->output(0));
  CHECK(code(s.instance->omit(0)) == StatusCode::kInvalidArgument);
  CHECK_FALSE(s.instance->input(0, Shape{2, 4}, 31));
  CHECK(code(s.run(4)) == StatusCode::kOk);

  s.log->fail_at["set_input_shape"] = 1;
  CHECK(code(s.run(5)) == StatusCode::kInvalidArgument);
  s.log->fail_at.clear();
  CHECK(code(s.run(4)) == StatusCode::kOk);
}

TEST_CASE("an error of the device is answered once, then the instance asks to be replaced") {
  for (const char* call : {"copy", "enqueue", "synchronize", "launch", "select_profile"}) {
    CAPTURE(call);
    Setup s;
    if (std::string(call) != "select_profile") {
      REQUIRE(s.run(4).ok());
      REQUIRE(s.run(4).ok());  // a graph
    }
    s.log->fail_at[call] = 1;
    const int64_t rows =
        std::string(call) == "launch" || std::string(call) == "synchronize" ? 4 : 5;
    CHECK(code(s.run(rows)) == StatusCode::kInternal);
    s.log->fail_at.clear();
    const int enqueues = s.log->enqueues;
    CHECK(code(s.run(4)) == StatusCode::kUnavailable);
    CHECK(code(s.instance->run()) == StatusCode::kUnavailable);
    CHECK(s.log->enqueues == enqueues);
  }
}

TEST_CASE("no memory is an answer, and the next batch is served") {
  Setup s;
  REQUIRE(s.run(4).ok());
  s.log->fail_at["allocate"] = 1;
  CHECK(code(s.run(64)) == StatusCode::kResourceExhausted);
  s.log->fail_at["allocate"] = 2;  // now the staging grows, the device does not
  CHECK(code(s.run(64)) == StatusCode::kResourceExhausted);
  s.log->fail_at.clear();
  CHECK(code(s.run(64)) == StatusCode::kOk);
  CHECK(code(s.run(4)) == StatusCode::kOk);
}

TEST_CASE("memory is accounted, limited, and given back") {
  std::shared_ptr<fake::Log> log;
  std::shared_ptr<TensorRtMeter> meter;
  {
    Setup s({}, 1000 + 2 * 256);
    log = s.log;
    meter = s.meter;
    CHECK(meter->device_bytes == 1000);
    REQUIRE(s.run(16).ok());
    CHECK(meter->device_bytes == 1000 + 2 * 256);
    CHECK(meter->pinned_bytes == 2 * 256);
    CHECK(code(s.run(64)) == StatusCode::kResourceExhausted);
    CHECK(code(s.run(16)) == StatusCode::kOk);
    CHECK_FALSE(TensorRtInstance::create(std::make_shared<fake::Engine>(log), meter, {}));
  }
  CHECK(meter->device_bytes == 0);
  CHECK(meter->pinned_bytes == 0);
  CHECK(log->live == 0);
}

TEST_CASE("a model makes instances, and a missing library says so") {
  const std::shared_ptr<Model> model =
      tensorrt_model(std::make_shared<fake::Engine>(std::make_shared<fake::Log>()), {});
  CHECK(model->inputs()[0].name == "x");
  CHECK(model->make_instance());
  TensorRtLoadOptions little;
  little.device_memory_limit = 5999;
  const std::shared_ptr<Model> full =
      tensorrt_model(std::make_shared<fake::Engine>(std::make_shared<fake::Log>()), little);
  CHECK_FALSE(full->make_instance());  // 5000 of weights, 1000 of a context

  const TensorRtBackend none("libno_such_library_of_tensorrt.so");
  const Result<std::shared_ptr<Model>> loaded = none.load("model.plan", {});
  REQUIRE_FALSE(loaded);
  CHECK(loaded.error().code() == StatusCode::kUnavailable);
  CHECK(loaded.error().message().find("TensorRT_ROOT") != std::string::npos);
  const Result<TensorRtDevice> device = none.device();
  REQUIRE_FALSE(device);
  CHECK(device.error().code() == StatusCode::kUnavailable);
  CHECK(device.error().message().find("libno_such_library_of_tensorrt.so") != std::string::npos);
  const TensorRtBackend other("libz.so.1");  // a library, but not ours
  CHECK(other.device().error().message().find("not of this version") != std::string::npos);
}

}  // namespace headrace
