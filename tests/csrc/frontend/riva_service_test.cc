// RivaSpeechRecognition over the in-memory wire, with a recogniser that the test speaks for.
#include "frontend/riva_service.h"

#include <doctest/doctest.h>

#include <string>
#include <thread>
#include <vector>

#include "frontend/riva_messages.h"
#include "wire_client.h"

using namespace headrace;
using namespace headrace::testing;
using test::Reply;

namespace {

const std::string kRiva = "/nvidia.riva.asr.RivaSpeechRecognition/";
const std::string kStream = kRiva + "StreamingRecognize";
const std::string kFile = kRiva + "Recognize";
const std::string kModels = kRiva + "GetRivaSpeechRecognitionConfig";

struct Service {
  explicit Service(const test::ClientOptions& options = {})
      : calls(methods, budget, timers, [this] { return now; }),
        service(std::make_unique<RivaService>(loop, calls, state)),
        wire(calls, {}, options) {
    REQUIRE(loop.open().ok());
    state.ready = true;
    publish({{"scripted", model}});
    service->add_to(methods, 64 << 20);
  }
  ~Service() {
    wire.lose();
    CHECK(service->open_streams() == 0);
    for (const auto& hearing : model->hearings) CHECK(hearing->gone);
    CHECK(budget.used() == 0);
    CHECK(calls.active() == 0);
    CHECK(timers.size() == 0);
  }
  void publish(SpeechTable::Models models) {
    state.speech.publish(std::make_shared<const SpeechTable>(std::move(models)));
  }
  // Turns of the loop until nothing moves any more.
  void pump() {
    std::size_t before = 0;
    do {
      before = heard();
      wire.pump();
      service->on_wake();
    } while (heard() != before);
    wire.pump();
  }
  std::size_t heard() const {
    std::size_t samples = 0;
    for (const auto& hearing : model->hearings) samples += hearing->heard.size();
    return samples;
  }
  void open(const std::string& first = streaming_config()) {
    stream = wire.client.open(kStream);
    send(first);
  }
  void send(const std::string& message) {
    wire.client.send(stream, test::grpc_message(message));
    pump();
  }
  void half_close() {
    wire.client.end(stream);
    pump();
  }
  ScriptedHearing& hearing(std::size_t i = 0) { return *model->hearings.at(i); }
  void say(SpeechResult result, std::size_t i = 0) {
    hearing(i).listener->on_result(std::move(result));
    pump();
  }
  void end(Status status = {}, std::size_t i = 0) {
    hearing(i).listener->on_end(std::move(status));
    pump();
  }
  std::vector<RivaResult> results() {
    std::vector<RivaResult> all;
    for (const Reply::Message& message : reply().messages()) {
      const std::vector<RivaResult> some = riva_results(message.text);
      REQUIRE(some.size() == 1);  // one a response
      all.push_back(some[0]);
    }
    return all;
  }
  const Reply& reply() const { return wire.client.reply(stream); }
  const Reply& call(const std::string& path, const std::string& message) {
    stream = wire.client.call(path, message);
    pump();
    return reply();
  }

  std::shared_ptr<ScriptedRecognizer> model = std::make_shared<ScriptedRecognizer>();
  TimePoint now{std::chrono::hours(1)};
  TimerWheel timers{now};
  EventLoop loop;
  ServerState state;
  MethodTable methods;
  ReceiveBudget budget{64 << 20};
  CallSet calls;
  std::unique_ptr<RivaService> service;
  test::Wire wire;
  int32_t stream = 0;
};

std::string pcm(std::size_t samples, char byte = '\x11') { return std::string(samples * 2, byte); }

}  // namespace

TEST_CASE("audio goes in, results come out one a message, the last finals end the stream") {
  Service service;
  RivaConfigFields fields;
  fields.words = true;
  fields.more = field(25, message([](auto& w) {
                        w.add_int32(3, 320);
                        w.add_float(2, 0.4F);
                        w.add_int32(5, -1);
                      })) +
                field(6, field(1, "Headrace") + field(1, "Riva") +
                             message([](auto& w) { w.add_float(4, 20); }));
  service.open(streaming_config(fields) + request_id("mine"));
  CHECK(service.reply().header(":status") == "200");  // before any audio
  const SpeechOptions& options = service.hearing().options;
  CHECK(options.interim_results);
  CHECK(options.word_times);
  CHECK_FALSE(options.offline);
  CHECK(options.endpointing.stop_history_ms == 320);
  CHECK(options.endpointing.start_threshold == doctest::Approx(0.4F));
  CHECK(options.endpointing.stop_history_eou_ms == -1);
  REQUIRE(options.phrases.size() == 2);
  CHECK(options.phrases[1].text == "Riva");
  CHECK(options.phrases[1].boost == 20);
  for (int i = 0; i < 5; ++i) service.send(audio_content(pcm(1600)));
  CHECK(service.hearing().heard == std::vector<float>(8000, 0x1111 / 32768.0F));
  service.say(interim("hello"));
  service.say(interim("hello wor", 1));
  SpeechResult result = final_result("hello world");
  result.words = {{"hello", 100, 400, 0.9F}, {"world", 450, 800, 0.5F}};
  service.say(result);
  service.half_close();
  CHECK(service.hearing().finished);
  CHECK_FALSE(service.reply().ended);
  service.say(final_result("again"));
  service.end();
  const std::vector<RivaResult> results = service.results();
  REQUIRE(results.size() == 4);
  CHECK(results[0].transcript == "hello ");
  CHECK(results[0].stability == 0.5F);
  CHECK_FALSE(results[0].is_final);
  CHECK(results[0].confidence == 0);
  CHECK(results[1].stability == 1);
  CHECK(results[2].transcript == "hello world ");
  CHECK(results[2].is_final);
  CHECK(results[2].stability == 0);
  CHECK(results[2].confidence == 0.75F);
  CHECK(results[2].words == std::vector<std::string>{"hello", "world"});
  CHECK(results[2].starts == std::vector<int32_t>{100, 450});
  CHECK(results[2].processed == 2);
  CHECK(results[3].transcript == "again ");
  for (const RivaResult& one : results) {
    CHECK(one.id == "mine");
    CHECK(one.channel == 0);
  }
  CHECK(service.reply().status() == 0);
}

TEST_CASE("samples and headers may be cut anywhere") {
  std::string whole;
  for (int i = 0; i < 1000; ++i)
    whole += std::string({static_cast<char>(i), static_cast<char>(i % 7)});
  std::string header = "RIFF____WAVEfmt ";
  header += std::string("\x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0", 20);
  header += std::string("data\0\0\0\0", 8);
  for (const bool file : {false, true}) {
    std::vector<float> expected;
    for (const std::size_t chunk : {5000, 1, 3, 999}) {
      CAPTURE(chunk);
      Service service;
      RivaConfigFields fields;
      if (file) fields.encoding = fields.rate = 0;
      service.open(streaming_config(fields));
      std::string_view bytes;
      const std::string sent = file ? header + whole : whole;
      bytes = sent;
      while (!bytes.empty()) {
        const std::string_view piece = bytes.substr(0, chunk);
        bytes.remove_prefix(piece.size());
        service.send(audio_content(piece));
      }
      service.half_close();
      if (expected.empty()) expected = service.hearing().heard;
      CHECK(expected.size() == 1000);
      CHECK(service.hearing().heard == expected);
      service.end();
      CHECK(service.reply().status() == 0);
    }
  }
}

TEST_CASE("force_eou ends the utterance after the audio that came with it") {
  Service service;
  service.open();
  service.send(audio_content(pcm(100)));
  CHECK(service.hearing().forced == 0);
  service.send(audio_content(pcm(100)) + force_eou());
  CHECK(service.hearing().forced == 1);
  CHECK(service.hearing().heard.size() == 200);
  service.send(force_eou());
  CHECK(service.hearing().forced == 2);
  service.send(field(3, field(1, "force_eou") + field(2, "false")));
  service.send(field(3, field(1, "other") + field(2, "true")));
  CHECK(service.hearing().forced == 2);
  service.half_close();
  service.end();
  CHECK(service.reply().status() == 0);
}

TEST_CASE("no more messages are taken while the backlog is full") {
  Service service;
  service.model->full_after = 3000;
  service.open();
  for (int i = 0; i < 300; ++i) {
    service.wire.client.send(service.stream, test::grpc_message(audio_content(pcm(1000))));
  }
  service.wire.client.end(service.stream);
  service.pump();
  CHECK(service.hearing().heard.size() == 3000);
  // The window of the stream, and a message.
  CHECK(service.budget.used() <= (256 << 10) + 4000);
  for (int round = 1; round < 200 && !service.hearing().finished; ++round) {
    service.hearing().full = false;
    service.model->full_after = 0;
    service.hearing().listener->on_room();
    service.pump();
    // The double is full again with each push.
    CHECK(service.hearing().heard.size() <= 3000U + static_cast<std::size_t>(round) * 2000);
  }
  while (!service.hearing().finished) {
    service.hearing().full = false;
    service.hearing().listener->on_room();
    service.pump();
  }
  CHECK(service.hearing().heard.size() == 300000);
  service.end();
  CHECK(service.reply().status() == 0);
}

TEST_CASE("one large message goes in as the backlog takes it") {
  Service service;
  service.model->full_after = 1;
  service.open();
  service.send(audio_content(pcm(1 << 20)));
  std::size_t rounds = 0;
  while (service.heard() < 1 << 20) {
    const std::size_t before = service.heard();
    service.hearing().full = false;
    service.hearing().listener->on_room();
    service.pump();
    REQUIRE(service.heard() > before);
    CHECK(service.heard() - before <= AudioCodec::kBlockFrames);
    ++rounds;
  }
  CHECK(rounds >= 100);
  service.hearing().full = false;
  service.half_close();
  service.end();
  CHECK(service.reply().status() == 0);
}

TEST_CASE("a client that does not read: interim results give way, finals wait, no audio is taken") {
  test::ClientOptions options;
  options.settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 100}};
  options.auto_window_update = false;
  Service service(options);
  service.open();
  const std::string text(10000, 'a');
  for (int i = 0; i < 1000; ++i) service.say(interim(text + std::to_string(i)));
  const std::size_t unsent = service.wire.connection->unsent();
  CHECK(unsent <= (768 << 10) + 21000);
  service.say(final_result("first"));
  for (int i = 0; i < 100; ++i) service.say(interim("of the second " + std::to_string(i)));
  service.say(final_result("second"));
  service.say(interim("third"));
  CHECK(service.wire.connection->unsent() == unsent);
  service.send(audio_content(pcm(1000)));
  service.send(audio_content(pcm(1000)));
  CHECK(service.heard() == 0);
  service.half_close();
  CHECK_FALSE(service.hearing().finished);
  for (int i = 0; i < 1000 && !service.hearing().finished; ++i) {
    service.wire.client.credit(service.stream, 50000);
    service.wire.client.credit(0, 50000);
    service.pump();
  }
  CHECK(service.heard() == 2000);
  service.end();
  for (int i = 0; i < 1000 && !service.reply().closed; ++i) {
    service.wire.client.credit(service.stream, 50000);
    service.wire.client.credit(0, 50000);
    service.pump();
  }
  const std::vector<RivaResult> results = service.results();
  REQUIRE(results.size() >= 4);
  CHECK(results.size() < 120);
  const std::size_t last = results.size() - 1;
  CHECK(results[last].transcript == "third ");
  CHECK(results[last - 1].transcript == "second ");
  CHECK(results[last - 2].transcript == "first ");
  CHECK(service.reply().status() == 0);
}

TEST_CASE("interim results that nobody asked for are not sent") {
  Service service;
  service.open(streaming_config({}, false));
  CHECK_FALSE(service.hearing().options.interim_results);
  service.say(interim("no"));
  service.say(final_result("yes"));
  REQUIRE(service.results().size() == 1);
  CHECK(service.results()[0].is_final);
  service.half_close();
  service.end();
}

TEST_CASE("a client that leaves frees its stream at once, whatever is under way") {
  for (const int way : {0, 1, 2}) {
    Service service;
    service.model->full_after = 100;
    service.stream = service.wire.client.open(kStream, {{"grpc-timeout", "100m"}});
    service.send(streaming_config());
    service.send(audio_content(pcm(100000)));
    service.say(final_result("one"));
    const auto listener = service.hearing().listener;
    if (way == 0) service.wire.client.reset(service.stream);
    if (way == 1) service.wire.lose();
    if (way == 2) {
      service.now += std::chrono::milliseconds(101);
      service.timers.advance(service.now);
    }
    service.pump();
    CHECK(service.hearing().gone);
    CHECK(service.service->open_streams() == 0);
    // What the recogniser's threads still say goes nowhere.
    std::thread late([&] {
      listener->on_result(final_result("late"));
      listener->on_room();
      listener->on_end({});
    });
    late.join();
    service.pump();
    if (way == 2) CHECK(service.reply().status() == 4);
  }
}

TEST_CASE("a listener may outlive the service and its loop") {
  std::shared_ptr<SpeechListener> listener;
  {
    Service service;
    service.open();
    listener = service.hearing().listener;
    service.wire.client.reset(service.stream);
    service.pump();
  }
  listener->on_result(final_result("late"));
  listener->on_end({});
}

TEST_CASE("the recogniser's errors end the stream, after the results before them") {
  Service service;
  service.open();
  service.hearing().listener->on_result(final_result("heard"));
  service.end(Status::unavailable("the model is gone"));
  CHECK(service.results().size() == 1);
  CHECK(service.reply().status() == 14);
  CHECK(service.reply().status_message() == "the model is gone");
  Service other;
  other.model->refusal =
      Status::resource_exhausted("busy").with_pushback(std::chrono::milliseconds(50));
  other.open();
  CHECK(other.reply().status() == 8);
  CHECK((other.reply().trailer("grpc-retry-pushback-ms") ||
         other.reply().header("grpc-retry-pushback-ms")));
}

TEST_CASE("what is wrong with a stream is told") {
  const auto status_of = [](const std::string& first) {
    Service service;
    service.open(first);
    return std::pair(service.reply().status(), service.reply().status_message());
  };
  const auto with = [](auto change) {
    RivaConfigFields fields;
    change(fields);
    return streaming_config(fields);
  };
  CHECK(status_of(audio_content("xx")).first == 3);  // no config
  CHECK(status_of("").first == 3);
  CHECK(status_of("\xff\xff").first == 13);
  CHECK(status_of(with([](auto& f) { f.rate = 3000; })).first == 3);
  CHECK(status_of(with([](auto& f) { f.rate = -1; })).first == 3);
  CHECK(status_of(with([](auto& f) { f.rate = 200000; })).first == 3);
  CHECK(status_of(with([](auto& f) { f.channels = 9; })).first == 3);
  CHECK(status_of(with([](auto& f) { f.encoding = 5; })).first == 3);
  const auto unknown = status_of(with([](auto& f) { f.model = "nobody"; }));
  CHECK(unknown.first == 5);
  CHECK(unknown.second.find("scripted") != std::string::npos);
  CHECK(status_of(with([](auto& f) { f.language = "xx-XX"; })).first == 5);
  CHECK(status_of(with([](auto& f) {
          f.more = message([](auto& w) { w.add_bool(5, true); });
        })).first == 12);
  std::string phrases;
  for (std::size_t i = 0; i <= kMaxRivaPhrases; ++i) phrases += field(1, "p");
  CHECK(status_of(with([&](auto& f) { f.more = field(6, phrases); })).first == 3);
  const std::string long_phrase = field(1, std::string(257, 'p'));
  CHECK(status_of(with([&](auto& f) { f.more = field(6, long_phrase); })).first == 3);
  CHECK(status_of(with([&](auto& f) { f.model = "\xff"; })).first == 13);

  Service service;
  service.open();
  service.send(streaming_config());
  CHECK(service.reply().status() == 3);  // a second config
  Service silent;
  silent.stream = silent.wire.client.open(kStream);
  silent.half_close();
  CHECK(silent.reply().status() == 3);
  Service garbage;
  RivaConfigFields unspecified;
  unspecified.encoding = 0;
  garbage.open(streaming_config(unspecified));
  garbage.send(audio_content("this is no audio"));
  CHECK(garbage.reply().status() == 3);
}

TEST_CASE("a stream without audio ends well") {
  Service service;
  service.open();
  service.half_close();
  service.end();
  CHECK(service.reply().status() == 0);
  CHECK(service.results().empty());
  RivaConfigFields separate;
  separate.separate = true;
  Service none;
  none.open(streaming_config(separate));
  none.half_close();
  CHECK(none.reply().status() == 0);
  CHECK(none.model->hearings.empty());
}

TEST_CASE("channels each by themselves") {
  RivaConfigFields fields;
  fields.channels = 2;
  fields.separate = true;
  Service service;
  service.open(streaming_config(fields));
  CHECK(service.model->hearings.empty());  // the header may say another number
  service.send(audio_content(std::string("\x01\x00\x00\x01", 4)));
  REQUIRE(service.model->hearings.size() == 2);
  CHECK(service.hearing(0).heard == std::vector<float>{1 / 32768.0F});
  CHECK(service.hearing(1).heard == std::vector<float>{256 / 32768.0F});
  service.say(interim("right"), 1);
  service.say(final_result("left"), 0);
  service.half_close();
  service.end({}, 1);
  CHECK_FALSE(service.reply().ended);
  service.end({}, 0);
  const std::vector<RivaResult> results = service.results();
  REQUIRE(results.size() == 2);
  CHECK(results[0].channel == 2);
  CHECK(results[1].channel == 1);
  CHECK(service.reply().status() == 0);
}

TEST_CASE("a whole file: one answer with all finals") {
  Service service;
  RivaConfigFields fields;
  fields.words = true;
  service.call(kFile,
               field(1, recognition_config(fields)) + field(2, pcm(50000)) + request_id("f"));
  CHECK(service.hearing().options.offline);
  CHECK_FALSE(service.hearing().options.interim_results);
  CHECK(service.hearing().heard.size() == 50000);
  CHECK(service.hearing().finished);
  service.say(interim("not for files"));
  service.say(final_result("one"));
  service.say(final_result("two"));
  CHECK_FALSE(service.reply().ended);
  service.end();
  CHECK(service.reply().status() == 0);
  const std::vector<RivaResult> results = riva_results(service.reply().message().value(), true);
  REQUIRE(results.size() == 2);
  CHECK(results[0].transcript == "one ");
  CHECK(results[1].transcript == "two ");
  CHECK(results[1].confidence == 0.75F);
  CHECK(results[1].processed == 2);
  CHECK(results[0].id == "f");
}

TEST_CASE("a file's errors, and a client that leaves before its answer") {
  const auto status_of = [](const std::string& message) {
    Service service;
    return service.call(kFile, message).status();
  };
  const std::string config = field(1, recognition_config());
  CHECK(status_of(config) == 3);
  CHECK(status_of(field(2, "RIFF____AVI ")) == 3);
  CHECK(status_of("\x0a\x7f") == 13);
  CHECK(status_of(config.substr(0, config.size() - 1)) == 13);
  RivaConfigFields wrong;
  wrong.model = "x";
  CHECK(status_of(field(1, recognition_config(wrong)) + field(2, pcm(10))) == 5);
  Service service;
  service.call(kFile, config + field(2, pcm(10)));
  service.wire.client.reset(service.stream);
  service.pump();
  CHECK(service.hearing().gone);
}

TEST_CASE("models: by name, by language, for streams and for files; a swap leaves streams alone") {
  Service service;
  const auto german = std::make_shared<ScriptedRecognizer>("german", "de-DE");
  const auto files = std::make_shared<ScriptedRecognizer>("a-files", "en-US");
  files->change().streaming = false;
  service.publish({{"german", german}, {"a-files", files}, {"scripted", service.model}});
  RivaConfigFields fields;
  service.open(streaming_config(fields));  // the first that takes streams
  CHECK(german->hearings.size() == 1);
  fields.language = "en-us";
  service.open(streaming_config(fields));
  CHECK(service.model->hearings.size() == 1);
  fields.language = "en-GB";
  service.open(streaming_config(fields));
  CHECK(service.model->hearings.size() == 2);
  fields.language = "fr";
  service.open(streaming_config(fields));
  CHECK(service.reply().status() == 5);
  fields.model = "german";  // by name, the language is not asked
  service.open(streaming_config(fields));
  CHECK(german->hearings.size() == 2);
  fields.model = "a-files";
  service.open(streaming_config(fields));
  CHECK(service.reply().status() == 12);

  const Reply& reply = service.call(kModels, "");
  CHECK(reply.status() == 0);
  std::vector<std::string> listed;
  const std::string bytes = reply.message().value();
  protozero::pbf_reader response(bytes);
  while (response.next(1)) {
    protozero::pbf_reader config(response.get_message());
    std::string name;
    std::string type;
    while (config.next()) {
      if (config.tag() == 1) {
        name = config.get_string();
        continue;
      }
      protozero::pbf_reader pair(config.get_message());
      std::string key;
      while (pair.next()) {
        if (pair.tag() == 1)
          key = pair.get_string();
        else if (key == "type")
          type = pair.get_string();
        else
          pair.skip();
      }
    }
    listed.push_back(name + " " + type);
  }
  CHECK(listed == std::vector<std::string>{"a-files offline", "german online", "german offline",
                                           "scripted online", "scripted offline"});
  CHECK(service.call(kModels, field(1, "german")).status() == 0);
  CHECK(service.call(kModels, field(1, "nobody")).status() == 5);

  service.publish({});
  service.service->refresh();
  CHECK_FALSE(german->hearings[0]->gone);
  service.open();
  CHECK(service.reply().status() == 5);
  service.state.ready = false;
  service.open();
  CHECK(service.reply().status() == 14);  // the server is starting
  service.wire.lose();
}

TEST_CASE("a server that stops lets streams say what they have heard") {
  Service service;
  service.open();
  service.send(audio_content(pcm(500)));
  const int32_t speaking = service.stream;
  service.stream = service.wire.client.open(kStream);  // has said nothing yet
  service.pump();
  service.service->end_streams(Status::unavailable("stopping"));
  service.pump();
  CHECK(service.reply().status() == 14);
  service.stream = speaking;
  CHECK(service.hearing().finished);
  service.send(audio_content(pcm(500)));  // too late
  CHECK(service.heard() == 500);
  service.say(final_result("the last words"));
  service.end();
  REQUIRE(service.results().size() == 1);
  CHECK(service.reply().status() == 14);
  service.open();
  CHECK(service.reply().status() == 14);
}

TEST_CASE("cut off messages are no messages, and break nothing") {
  RivaConfigFields fields;
  fields.words = true;
  fields.model = "scripted";
  fields.more = field(6, field(1, "phrase")) + field(25, std::string("\x18\x40", 2)) +
                field(19, std::string("\x08\x00", 2));
  const std::string whole = streaming_config(fields) + request_id("an id");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    Service service;
    service.open(whole.substr(0, size));
    const int status = service.reply().status();
    CHECK((status == 13 || status == 3 || status == -1));  // -1: what was cut off was not needed
  }
}
