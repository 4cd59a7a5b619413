// ModelStreamInfer over the in-memory wire, with a model whose answers the test gives.
#include "frontend/infer_stream.h"

#include <doctest/doctest.h>

#include <deque>
#include <protozero/pbf_message.hpp>
#include <string>
#include <vector>

#include "frontend/messages.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::testing;
using test::Headers;
using test::Reply;

namespace {

const std::string kPath = "/inference.GRPCInferenceService/ModelStreamInfer";

// Keeps its requests until the test answers them.
class HeldModel final : public Servable {
 public:
  void submit(RequestPtr request) override {
    ++submitted;
    if (at_once) {
      answer_ok(std::move(request));
    } else {
      requests.push_back(std::move(request));
    }
  }
  const ModelSpec& spec() const override { return spec_; }
  // Answers with the input's bytes.
  void answer_ok(RequestPtr request) {
    Response& response = request->response;
    response.model_name = "m";
    response.model_version = "1";
    const TensorView& input = request->inputs.at(0).tensor;
    const BufferRef owner = buffer_of(text_of_bytes(input.data));
    response.outputs.push_back({"Y", {input.dtype, input.shape, owner.span()}, owner});
    answer(std::move(request));
  }
  RequestPtr take(std::size_t i) {
    RequestPtr request = std::move(requests.at(i));
    requests.erase(requests.begin() + static_cast<std::ptrdiff_t>(i));
    return request;
  }
  bool at_once = false;
  int submitted = 0;
  std::deque<RequestPtr> requests;

 private:
  ModelSpec spec_;
};

struct StreamAnswer {
  std::string error;
  std::string id;
  std::string output;
  bool final_response = false;
};

StreamAnswer parse(const std::string& text) {
  StreamAnswer answer;
  protozero::pbf_reader reader(text);
  while (reader.next()) {
    if (reader.tag() == 1) {
      answer.error = reader.get_string();
      continue;
    }
    REQUIRE(reader.tag() == 2);
    protozero::pbf_reader response(reader.get_message());
    while (response.next()) {
      if (response.tag() == 3) {
        answer.id = response.get_string();
      } else if (response.tag() == 4) {
        answer.final_response =
            response.get_string() == entry("triton_final_response", bool_value(true));
      } else if (response.tag() == 6) {
        answer.output = response.get_string();
      } else {
        response.skip();
      }
    }
  }
  return answer;
}

struct Service {
  explicit Service(const test::ClientOptions& options = {}, std::size_t budget_bytes = 64 << 20)
      : budget(budget_bytes),
        calls(methods, budget, timers, [this] { return now; }),
        service(loop, calls, state),
        wire(calls, {}, options) {
    REQUIRE(loop.open().ok());
    std::map<std::string, ModelRoutes, std::less<>> models;
    models["m"].versions[1] = model;
    models["m"].default_version = model;
    state.routes.publish(std::make_shared<const RouteTable>(std::move(models)));
    service.add_to(methods, 16 << 20);
    service.start();
  }
  ~Service() {
    wire.lose();
    model->requests.clear();
    CHECK(service.outstanding() == 0);
    CHECK(budget.used() == 0);
    CHECK(calls.active() == 0);
    CHECK(timers.size() == 0);
  }
  // Turns of the loop until nothing moves any more.
  void pump() {
    int before = 0;
    do {
      before = model->submitted;
      wire.pump();
      service.on_turn_end();
    } while (model->submitted != before);
    wire.pump();
  }
  int32_t open(const Headers& extra = {}) {
    stream = wire.client.open(kPath, extra);
    pump();
    return stream;
  }
  static std::string infer(const std::string& id, std::string_view data = "12345678",
                           std::string_view model = "m") {
    return field(1, model) + field(3, id) +
           input("X", "INT8", {1, static_cast<int64_t>(data.size())}) + raw_contents(data);
  }
  void send(const std::string& message) {
    wire.client.send(stream, test::grpc_message(message));
    pump();
  }
  std::vector<StreamAnswer> answers() {
    pump();
    std::vector<StreamAnswer> result;
    for (const Reply::Message& message : wire.client.reply(stream).messages()) {
      result.push_back(parse(message.text));
    }
    return result;
  }
  std::vector<std::string> ids() {
    std::vector<std::string> result;
    for (const StreamAnswer& answer : answers()) result.push_back(answer.id);
    return result;
  }
  const Reply& reply() const { return wire.client.reply(stream); }

  std::shared_ptr<HeldModel> model = std::make_shared<HeldModel>();
  TimePoint now{std::chrono::hours(1)};
  TimerWheel timers{now};
  EventLoop loop;
  ServerState state;
  MethodTable methods;
  ReceiveBudget budget;
  CallSet calls;
  KServeService service;
  test::Wire wire;
  int32_t stream = 0;
};

using Ids = std::vector<std::string>;

}  // namespace

TEST_CASE("a stream's requests run at the same time and are answered in their order") {
  Service service;
  service.open();
  CHECK(service.reply().header(":status") == "200");  // before any request
  for (const char* id : {"a", "b", "c", "d"}) service.send(Service::infer(id, id));
  REQUIRE(service.model->requests.size() == 4);
  service.model->answer_ok(service.model->take(2));  // c
  CHECK(service.ids().empty());
  service.model->answer_ok(service.model->take(0));  // a
  CHECK(service.ids() == Ids{"a"});
  service.model->answer_ok(service.model->take(0));  // b
  CHECK(service.ids() == Ids{"a", "b", "c"});
  service.wire.client.end(service.stream);
  service.pump();
  CHECK_FALSE(service.reply().ended);
  service.model->answer_ok(service.model->take(0));  // d
  const std::vector<StreamAnswer> answers = service.answers();
  REQUIRE(answers.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(answers[i].output == std::string(1, static_cast<char>('a' + i)));
    CHECK(answers[i].error.empty());
    CHECK(answers[i].final_response);
  }
  CHECK(service.reply().status() == 0);
  CHECK(service.budget.used() == 0);
}

TEST_CASE("an error is that request's alone, told in the stream with its id") {
  Service service;
  service.model->at_once = true;
  service.open();
  service.send(Service::infer("1"));
  service.send(Service::infer("2", "x", "unknown"));
  service.send(Service::infer("3") + parameter("priority", string_value("x")));
  service.model->at_once = false;
  service.send(Service::infer("4"));
  answer(service.model->take(0), Status::unavailable("bad \xff bytes"));
  service.send(Service::infer(""));
  answer(service.model->take(0), Status::unavailable(""));
  service.model->at_once = true;
  service.send(Service::infer("6"));
  const std::vector<StreamAnswer> answers = service.answers();
  REQUIRE(answers.size() == 6);
  CHECK(answers[0].error.empty());
  CHECK(answers[1].error == "Request for unknown model: 'unknown' is not found");
  CHECK(answers[2].error ==
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param.");
  CHECK(answers[3].error == "bad ? bytes");
  CHECK_FALSE(answers[4].error.empty());
  CHECK(answers[5].output == "12345678");
  CHECK(service.ids() == Ids{"1", "2", "3", "4", "", "6"});
  for (const std::size_t i : {1, 2, 3, 4}) CHECK_FALSE(answers[i].final_response);
  service.wire.client.end(service.stream);
  service.pump();
  CHECK(service.reply().status() == 0);
}

TEST_CASE("triton_grpc_error: the first error ends the stream with its status") {
  Service service;
  service.open({{"triton_grpc_error", "true"}});
  for (const char* id : {"1", "2", "3"}) service.send(Service::infer(id));
  answer(service.model->take(1), Status::unavailable("busy"));
  service.pump();
  CHECK_FALSE(service.reply().ended);  // in its turn
  service.model->answer_ok(service.model->take(0));
  CHECK(service.ids() == Ids{"1"});
  CHECK(service.reply().status() == 14);
  CHECK(service.reply().status_message() == "busy");
  REQUIRE(service.model->requests.size() == 1);
  CHECK(service.model->requests[0]->cancelled());
  service.model->answer_ok(service.model->take(0));  // goes nowhere
}

TEST_CASE("bytes that are no request end the stream, and cancel what runs") {
  Service service;
  service.open();
  service.send(Service::infer("1"));
  service.send("\xff\xff");
  CHECK(service.reply().status() == 13);
  CHECK(service.reply().status_message() == "Exception deserializing request!");
  REQUIRE(service.model->requests.size() == 1);
  CHECK(service.model->requests[0]->cancelled());
}

TEST_CASE("the client leaves: what runs is cancelled, what comes back is dropped") {
  for (const int way : {0, 1, 2}) {
    Service service;
    service.open({{"grpc-timeout", "100m"}});
    for (const char* id : {"1", "2", "3"}) service.send(Service::infer(id));
    service.model->answer_ok(service.model->take(1));
    if (way == 0) service.wire.client.reset(service.stream);
    if (way == 1) service.wire.lose();
    if (way == 2) {
      service.now += std::chrono::milliseconds(101);
      service.timers.advance(service.now);
    }
    service.pump();
    REQUIRE(service.model->requests.size() == 2);
    for (const RequestPtr& request : service.model->requests) CHECK(request->cancelled());
    CHECK(service.budget.used() == 0);
    service.model->answer_ok(service.model->take(0));
    answer(service.model->take(0), Status::cancelled("cancelled"));
    if (way == 2) CHECK(service.reply().status() == 4);
  }
}

TEST_CASE("at most kMaxInFlight requests of a stream are in the server") {
  constexpr std::size_t kMax = 256;
  Service service;
  service.open();
  for (std::size_t i = 0; i < kMax + 100; ++i) {
    service.wire.client.send(service.stream, test::grpc_message(Service::infer(std::to_string(i))));
  }
  service.pump();
  CHECK(service.model->requests.size() == kMax);
  // Answers out of order hold their place: only the first one's makes room.
  for (std::size_t i = kMax - 1; i != 0; --i) service.model->answer_ok(service.model->take(i));
  service.pump();
  CHECK(service.model->requests.size() == 1);
  service.model->at_once = true;  // the rest is answered within the call that makes room
  service.model->answer_ok(service.model->take(0));
  const Ids ids = service.ids();
  REQUIRE(ids.size() == kMax + 100);
  for (std::size_t i = 0; i < ids.size(); ++i) REQUIRE(ids[i] == std::to_string(i));
}

TEST_CASE("a client that does not read its answers gets no more requests taken") {
  test::ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1000}};
  options.auto_window_update = false;
  Service service(options);
  service.model->at_once = true;
  service.open();
  const std::string data(60000, 'x');
  for (int i = 0; i < 400; ++i) {
    service.wire.client.send(service.stream,
                             test::grpc_message(Service::infer(std::to_string(i), data)));
  }
  service.wire.client.end(service.stream);
  service.pump();
  CHECK(service.wire.connection->unsent() <= (768 << 10) + 61000);
  // What waits for its turn to be sent is a stream's share of requests, and its window.
  CHECK(service.budget.used() <= 256 * 61000 + (256 << 10));
  CHECK(service.wire.client.reply(service.stream).messages().empty());
  for (int i = 0; i < 2000 && !service.reply().closed; ++i) {
    service.wire.client.credit(service.stream, 50000);
    service.wire.client.credit(0, 50000);
    service.pump();
    REQUIRE(service.wire.connection->unsent() <= (768 << 10) + 61000);
  }
  const std::vector<StreamAnswer> answers = service.answers();
  REQUIRE(answers.size() == 400);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    REQUIRE(answers[i].id == std::to_string(i));
    REQUIRE((answers[i].output == data));
  }
  CHECK(service.reply().status() == 0);
}

TEST_CASE("unary and streamed requests side by side, and requests dropped by the model") {
  Service service;
  service.open();
  service.send(Service::infer("s"));
  const int32_t unary =
      service.wire.client.call("/inference.GRPCInferenceService/ModelInfer", Service::infer("u"));
  service.pump();
  REQUIRE(service.model->requests.size() == 2);
  service.model->take(0).reset();  // dropped: answers INTERNAL by itself
  service.model->answer_ok(service.model->take(0));
  const std::vector<StreamAnswer> answers = service.answers();
  REQUIRE(answers.size() == 1);
  CHECK(answers[0].error == "the request was dropped by the server");
  CHECK(answers[0].id == "s");
  CHECK(service.wire.client.reply(unary).status() == 0);
}
