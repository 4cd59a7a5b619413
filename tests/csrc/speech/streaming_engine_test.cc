#include "speech/streaming_engine.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>

#include "speech/toy_streaming.h"

using namespace headrace;
using namespace headrace::toy;

namespace {

class Listener final : public SpeechListener {
 public:
  void on_result(SpeechResult result) noexcept override {
    const std::lock_guard lock(mutex_);
    late_ = late_ || end_;
    results_.push_back(std::move(result));
    wake_.notify_all();
  }
  void on_end(Status status) noexcept override {
    const std::lock_guard lock(mutex_);
    late_ = late_ || end_;
    end_ = std::move(status);
    wake_.notify_all();
  }
  void on_room() noexcept override {
    const std::lock_guard lock(mutex_);
    ++rooms_;
    wake_.notify_all();
  }
  void wait(const std::function<bool()>& condition) {
    std::unique_lock lock(mutex_);
    REQUIRE(wake_.wait_for(lock, std::chrono::seconds(120), condition));
  }
  Status wait_for_end() {
    wait([this] { return end_.has_value(); });
    const std::lock_guard lock(mutex_);
    CHECK_FALSE(late_);
    return *end_;
  }
  // Of the finals; call when it has ended, or within wait().
  std::string finals() const {
    std::string text;
    for (const SpeechResult& result : results_) {
      if (result.is_final) text += (text.empty() ? "" : "|") + result.transcript;
    }
    return text;
  }
  const std::vector<SpeechResult>& results() const { return results_; }
  std::size_t rooms() const { return rooms_; }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<SpeechResult> results_;
  std::optional<Status> end_;
  std::size_t rooms_ = 0;
  bool late_ = false;
};

std::shared_ptr<SpeechRecognizer> engine(StreamingEngineOptions options = {},
                                         toy::Function function = spell, uint32_t tail_ms = 0) {
  StreamingNetworks networks;
  networks.encoder = *StreamingNetwork::create({kChunk, kShift, {}}, model(std::move(function)));
  networks.blank = kBlank;
  options.tail_ms = tail_ms;
  return *make_streaming_engine(options, networks, letters());
}

Result<std::shared_ptr<SpeechRecognizer>> try_transducer(std::size_t paths, int64_t blank = kBlank,
                                                         int64_t width = 1, bool open = false) {
  StreamingNetworks networks;
  const auto encoder = std::make_shared<toy::ToyModel>(
      std::vector<TensorSpec>{toy::spec("x", DType::kFp32, {-1, kChunk, kBands}),
                              toy::spec("c", DType::kFp32, {-1, 1})},
      std::vector<TensorSpec>{toy::spec("encoder_out", DType::kFp32, {-1, kHeard, 1}),
                              toy::spec("new_c", DType::kFp32, {-1, 1})},
      hear_loud);
  networks.encoder = *StreamingNetwork::create({kChunk, kShift, {}}, encoder);
  const auto decoder = std::make_shared<toy::ToyModel>(
      std::vector<TensorSpec>{toy::spec("y", DType::kInt64, {-1, 1})},
      std::vector<TensorSpec>{toy::spec("decoder_out", DType::kFp32, {-1, 1})}, remember);
  const auto joiner = std::make_shared<toy::ToyModel>(
      std::vector<TensorSpec>{toy::spec("encoder_out", DType::kFp32, {-1, width}),
                              toy::spec("decoder_out", DType::kFp32, {-1, 1})},
      std::vector<TensorSpec>{toy::spec("logit", DType::kFp32, {-1, open ? -1 : kBlank + 1})},
      join);
  auto made = TransducerNetwork::create(blank, -1, decoder, joiner);
  if (!made) return made.error();
  networks.transducer = *made;
  StreamingEngineOptions options;
  options.paths = paths;
  options.tail_ms = 0;
  return make_streaming_engine(options, networks, letters());
}

std::shared_ptr<SpeechRecognizer> transducer(std::size_t paths) { return *try_transducer(paths); }

// Chunks of noise or silence. A frame reaches beyond its chunk, so that loud ones stand alone.
std::vector<float> sound(const std::string& pattern) {
  std::vector<float> samples;
  for (const char c : pattern) {
    for (std::size_t i = 0; i < kShiftSamples; ++i) {
      // In the middle of the chunk only.
      const bool in = c == '#' && i > 400 && i < kShiftSamples - 400;
      samples.push_back(in ? (i % 2 == 0 ? 0.5F : -0.4F) * std::sin(static_cast<float>(i)) : 0);
    }
  }
  return samples;
}

// What spell() makes of it.
std::string said(const std::string& pattern) {
  std::string text;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '#') text += static_cast<char>('a' + i % 25);
  }
  return text;
}

std::string recognize(SpeechRecognizer& engine, const std::string& pattern,
                      SpeechOptions options = {}) {
  auto listener = std::make_shared<Listener>();
  if (options.endpointing.stop_history_ms == 0) options.endpointing.stop_history_ms = 60'000;
  auto stream = *engine.open(options, listener);
  stream->push(sound(pattern));
  stream->finish();
  CHECK(listener->wait_for_end().ok());
  return listener->finals();
}

}  // namespace

TEST_CASE("streaming engine: every chunk is heard once, in order") {
  auto recognizer = engine();
  for (const std::string pattern :
       {"#", ".#", "##..#.##", "..........", "", "######.###........#"}) {
    CAPTURE(pattern);
    CHECK(recognize(*recognizer, pattern) == said(pattern));
  }
}

TEST_CASE("streaming engine: streams together say what they say alone") {
  StreamingEngineOptions options;
  options.threads = 3;
  options.max_batch = 4;
  auto recognizer = engine(options);
  std::vector<std::thread> speakers;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 12; ++i) {
    speakers.emplace_back([&, i] {
      std::string pattern;
      for (int k = 0; k < 60; ++k) pattern += (k * (i + 3)) % 7 < 3 ? '#' : '.';
      auto listener = std::make_shared<Listener>();
      SpeechOptions asked;
      asked.endpointing.stop_history_ms = 60'000;
      asked.interim_results = i % 2 == 0;
      auto stream = *recognizer->open(asked, listener);
      const std::vector<float> samples = sound(pattern);
      for (std::size_t at = 0; at < samples.size(); at += 977) {
        stream->push(
            std::span(samples).subspan(at, std::min<std::size_t>(977, samples.size() - at)));
      }
      stream->finish();
      const bool whole = listener->wait_for_end().ok();
      if (!whole || listener->finals() != said(pattern)) ++wrong;
    });
  }
  for (std::thread& speaker : speakers) speaker.join();
  CHECK(wrong == 0);
  const SpeechStatistics statistics = recognizer->statistics();
  CHECK(statistics.open_streams == 0);
  CHECK(statistics.streams_started == 12);
  CHECK(statistics.finals == 12);
}

TEST_CASE("streaming engine: silence ends an utterance, a forced end begins anew") {
  auto recognizer = engine();
  SpeechOptions options;
  options.endpointing.stop_history_ms = 240;  // three chunks
  CHECK(recognize(*recognizer, "##....#.#...", options) == "ab|gi");

  auto listener = std::make_shared<Listener>();
  options.word_times = true;
  options.endpointing.stop_history_ms = 60'000;
  auto stream = *recognizer->open(options, listener);
  stream->push(sound("#.#"));
  stream->force_end_of_utterance();
  listener->wait([&] { return listener->finals() == "ac"; });
  stream->push(sound(".##"));
  stream->force_end_of_utterance();
  stream->force_end_of_utterance();
  stream->finish();
  stream->finish();
  CHECK(listener->wait_for_end().ok());
  CHECK(listener->finals() == "ac|bc");
  REQUIRE(listener->results().size() == 2);
  CHECK(listener->results()[1].words.at(0).start_ms == 3 * 80 + 80);
  CHECK(listener->results()[1].confidence == doctest::Approx(std::exp(-0.1)));
}

TEST_CASE("streaming engine: partials grow, and one says that the final is near") {
  auto recognizer = engine();
  auto listener = std::make_shared<Listener>();
  SpeechOptions options;
  options.interim_results = true;
  options.endpointing.stop_history_ms = 400;
  options.endpointing.stop_history_eou_ms = 160;
  auto stream = *recognizer->open(options, listener);
  for (const char c : std::string("##......")) stream->push(sound(std::string(1, c)));
  listener->wait([&] { return listener->finals() == "ab"; });
  std::string told;
  for (const SpeechResult& result : listener->results()) {
    told += result.transcript + (result.is_final ? "." : result.stability == 1 ? "!" : "?");
  }
  CHECK(told == "a?ab?ab!ab.");
}

TEST_CASE("streaming engine: utterances have a longest length") {
  StreamingEngineOptions options;
  options.max_utterance_ms = 400;
  auto recognizer = engine(options);
  CHECK(recognize(*recognizer, "###########") == "abcde|fghij|k");
}

TEST_CASE("streaming engine: a network that fails ends its streams") {
  std::atomic<bool> broken{false};
  auto recognizer = engine({}, [&](const auto& in, auto& out) {
    return broken ? Status::internal("broken") : spell(in, out);
  });
  broken = true;
  auto listener = std::make_shared<Listener>();
  auto stream = *recognizer->open({}, listener);
  stream->push(sound("####"));
  CHECK(listener->wait_for_end().message() == "broken");
  stream->push(sound("####"));
  stream->finish();
}

TEST_CASE("streaming engine: bounds, refusals and vanishing clients") {
  StreamingEngineOptions options;
  options.max_streams = 1;
  options.max_backlog_s = 1;
  std::mutex gate;
  auto recognizer = engine(options, [&](const auto& in, auto& out) {
    const std::lock_guard lock(gate);
    return spell(in, out);
  });
  auto listener = std::make_shared<Listener>();
  gate.lock();
  auto stream = *recognizer->open({}, listener);
  CHECK(recognizer->open({}, listener).error().code() == StatusCode::kResourceExhausted);
  stream->push(sound(std::string(30, '#')));
  CHECK(stream->backlog_full());
  gate.unlock();
  listener->wait([&] { return listener->rooms() == 1; });
  CHECK_FALSE(stream->backlog_full());
  gate.lock();
  stream->push(sound(std::string(30, '#')));
  stream.reset();
  CHECK(recognizer->statistics().open_streams == 0);
  gate.unlock();
  SpeechOptions phrases;
  phrases.phrases.push_back({"a", 1});
  CHECK(recognizer->open(phrases, listener).error().code() == StatusCode::kUnimplemented);
  SpeechOptions late;
  late.endpointing.stop_history_ms = 70'000;
  CHECK(recognizer->open(late, listener).error().code() == StatusCode::kInvalidArgument);
  CHECK(recognizer->statistics().streams_refused == 1);
}

TEST_CASE("streaming engine: a beam says nothing in a long silence") {
  auto recognizer = transducer(4);
  auto listener = std::make_shared<Listener>();
  SpeechOptions options;
  options.interim_results = true;
  auto stream = *recognizer->open(options, listener);
  for (int minute = 0; minute < 2; ++minute) stream->push(sound(std::string(750, '.')));
  stream->finish();
  CHECK(listener->wait_for_end().ok());
  CHECK(listener->results().empty());
}

TEST_CASE("streaming engine: what a beam takes back is retracted") {
  auto recognizer = transducer(4);
  auto listener = std::make_shared<Listener>();
  SpeechOptions options;
  options.interim_results = true;
  auto stream = *recognizer->open(options, listener);
  stream->push(sound("#.........."));
  listener->wait([&] { return listener->results().size() == 2; });
  CAPTURE(listener->results()[1].transcript);
  CHECK(listener->results()[0].transcript == "a");
  CHECK_FALSE(listener->results()[0].is_final);
  CHECK(listener->results()[1].transcript.empty());
  CHECK(listener->results()[1].is_final);
  stream->finish();
  CHECK(listener->wait_for_end().ok());
  CHECK(listener->results().size() == 2);
}

TEST_CASE("streaming engine: phrases have bounds") {
  auto recognizer = transducer(1);
  auto listener = std::make_shared<Listener>();
  const auto open = [&](std::vector<SpeechPhrase> phrases) {
    SpeechOptions options;
    options.phrases = std::move(phrases);
    const auto stream = recognizer->open(options, listener);
    return stream ? Status() : stream.error();
  };
  CHECK(open({{"abc", 0}, {"", 0}, {" \t", 0}}).ok());
  CHECK(open({{"", 0}}).ok());
  CHECK(open({{std::string(256, 'a'), 0}}).ok());
  CHECK(open({{std::string(257, 'a'), 0}}).code() == StatusCode::kInvalidArgument);
  CHECK(open(std::vector<SpeechPhrase>(256, {std::string(256, 'a'), 0})).ok());
  CHECK(open(std::vector<SpeechPhrase>(257, {std::string(256, 'a'), 0})).message() ==
        "speech_contexts: a phrase has at most 256 bytes, all together 64 KiB");
  const Status unknown = open({{std::string(63, 'a') + "\xc3\xbc" + std::string(99, 'a'), 0}});
  CHECK(unknown.message().find("'" + std::string(63, 'a') + "...'") != std::string::npos);
}

TEST_CASE("streaming engine: the silence of forced ends counts as audio that waits") {
  StreamingEngineOptions options;
  options.max_backlog_s = 1.5;
  std::mutex gate;
  auto recognizer = engine(
      options,
      [&](const auto& in, auto& out) {
        const std::lock_guard lock(gate);
        return spell(in, out);
      },
      800);
  auto listener = std::make_shared<Listener>();
  auto stream = *recognizer->open({}, listener);
  {
    const std::lock_guard lock(gate);
    stream->push(sound("#."));
    stream->force_end_of_utterance();
    stream->force_end_of_utterance();
    CHECK_FALSE(stream->backlog_full());
    stream->push(std::vector<float>(1));
    stream->force_end_of_utterance();
    CHECK(stream->backlog_full());
  }
  listener->wait([&] { return listener->rooms() == 1; });
  CHECK_FALSE(stream->backlog_full());
  stream->finish();
  CHECK(listener->wait_for_end().ok());
  CHECK(listener->finals() == "a");
}

TEST_CASE("streaming engine: less than a frame is not worth a run") {
  auto recognizer = engine({}, spell, 800);
  auto listener = std::make_shared<Listener>();
  auto stream = *recognizer->open({}, listener);
  for (int i = 0; i < 5; ++i) {
    stream->push(std::vector<float>(1));
    stream->force_end_of_utterance();
  }
  stream->finish();
  CHECK(listener->wait_for_end().ok());
  CHECK(recognizer->statistics().decoder_steps == 0);
}

TEST_CASE("streaming engine: networks that do not fit are refused before any stream") {
  const auto make = [](toy::Function function, std::size_t max_batch = 4, int64_t blank = kBlank) {
    StreamingNetworks networks;
    networks.encoder = *StreamingNetwork::create({kChunk, kShift, {}}, model(std::move(function)));
    networks.blank = blank;
    StreamingEngineOptions options;
    options.max_batch = max_batch;
    options.threads = 2;
    const auto made = make_streaming_engine(options, networks, letters());
    return made ? Status() : made.error();
  };
  CHECK(make(spell).ok());
  const Status broken = make([](const auto&, auto&) { return Status::internal("broken"); });
  CHECK(broken.code() == StatusCode::kFailedPrecondition);
  CHECK(broken.message() == "encoder: broken");
  const toy::Function alone = [](const auto& in, auto& out) {
    if (in[0].shape[0] > 1) return Status::invalid_argument("Reshape: 2 is not 1");
    return spell(in, out);
  };
  CHECK(make(alone, 1).ok());
  CHECK(make(alone).code() == StatusCode::kInvalidArgument);
  CHECK(make(alone).message().find("encoder: Reshape: 2 is not 1 (2 streams at once") == 0);
  CHECK(make(spell, 4, kBlank + 1).message() == "encoder: has 27 tokens, but blank is 27");
  CHECK(make([](const auto&, auto&) -> Status { throw std::bad_alloc(); }).code() ==
        StatusCode::kResourceExhausted);

  CHECK(static_cast<bool>(try_transducer(4)));
  CHECK(try_transducer(1, kBlank + 1).error().message().find("joiner: has 27 tokens") == 0);
  CHECK(try_transducer(1, 99, 1, true).error().message().find("joiner: answered with") == 0);
  CHECK(try_transducer(1, kBlank, 5).error().message() ==
        "encoder: 'encoder_out' is 1 wide, but the joiner expects 5");
}

TEST_CASE("streaming engine: what the memory of a stream costs") {
  std::atomic<bool> full{false};
  auto recognizer = engine({}, [&](const auto& in, auto& out) {
    if (full) throw std::bad_alloc();
    return spell(in, out);
  });
  full = true;
  auto listener = std::make_shared<Listener>();
  auto stream = *recognizer->open({}, listener);
  stream->push(sound("##"));
  CHECK(listener->wait_for_end().code() == StatusCode::kResourceExhausted);
  full = false;
  CHECK(recognize(*recognizer, "#.#") == said("#.#"));

  StreamingEngineOptions options;
  options.max_cache_bytes = 40;  // 16 a stream
  recognizer = engine(options);
  auto other = std::make_shared<Listener>();
  const auto first = *recognizer->open({}, other);
  const auto second = *recognizer->open({}, other);
  const Status third = recognizer->open({}, other).error();
  CHECK(third.code() == StatusCode::kResourceExhausted);
  CHECK(third.message() == "speech: too many streams (2)");
}

TEST_CASE("streaming engine: a warm-up that leaves the processors to others") {
  StreamingEngineOptions options;
  options.low_priority = true;
  auto recognizer = engine(options);
  CHECK(recognize(*recognizer, "#.#") == said("#.#"));
}

TEST_CASE("streaming engine: a model that goes ends its streams") {
  auto recognizer = engine();
  auto listener = std::make_shared<Listener>();
  auto stream = *recognizer->open({}, listener);
  stream->push(sound("#"));
  recognizer.reset();
  CHECK(listener->wait_for_end().code() == StatusCode::kUnavailable);
  stream->push(sound("#"));
  stream->finish();
}
