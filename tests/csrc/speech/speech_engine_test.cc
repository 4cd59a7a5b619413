#include "speech/speech_engine.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "speech/toy_networks.h"

using namespace headrace;

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

  template <class Condition>
  void wait(Condition condition) {
    std::unique_lock lock(mutex_);
    REQUIRE(wake_.wait_for(lock, std::chrono::seconds(60), [&] { return condition(*this); }));
  }
  Status wait_for_end() {
    wait([](const Listener& self) { return self.end_.has_value(); });
    const std::lock_guard lock(mutex_);
    CHECK_FALSE(late_);
    return *end_;
  }
  std::string finals() {
    const std::lock_guard lock(mutex_);
    std::string text;
    for (const SpeechResult& result : results_) {
      if (result.is_final) text += (text.empty() ? "" : " | ") + result.transcript;
    }
    return text;
  }
  std::vector<SpeechResult> results() {
    const std::lock_guard lock(mutex_);
    return results_;
  }
  std::size_t rooms() const { return rooms_; }
  bool ended() const { return end_.has_value(); }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<SpeechResult> results_;
  std::optional<Status> end_;
  std::atomic<std::size_t> rooms_{0};
  bool late_ = false;
};

// Token 10 + i is the letter of i.
TokenTable letters() {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (int i = 0; i < 26; ++i) {
    // " a" and so on, in base64.
    const unsigned bits = (0x20U << 16) | (static_cast<unsigned>('a' + i) << 8);
    text += {kDigits[bits >> 18 & 63], kDigits[bits >> 12 & 63], kDigits[bits >> 6 & 63], '='};
    text += " " + std::to_string(10 + i) + "\n";
  }
  return *TokenTable::parse(text);
}

std::shared_ptr<SpeechRecognizer> make(SpeechEngineOptions options = {},
                                       std::shared_ptr<const SegmentNetwork> network = {},
                                       std::shared_ptr<Model> vad = toy::voice_activity()) {
  options.info.name = "toy";
  if (network == nullptr) network = toy::network();
  return *make_speech_engine(std::move(options), std::move(network), std::move(vad), letters());
}

std::vector<float> silence(std::size_t frames) {
  return std::vector<float>(frames * kVoiceFrame, 0.0F);
}

std::vector<int64_t> spell(const std::string& text) {
  std::vector<int64_t> words;
  for (const char c : text) words.push_back(10 + (c - 'a'));
  return words;
}

struct Opened {
  std::shared_ptr<Listener> listener = std::make_shared<Listener>();
  std::unique_ptr<SpeechStream> stream;
};

Opened open(SpeechRecognizer& recognizer, const SpeechOptions& options = {}) {
  Opened opened;
  auto stream = recognizer.open(options, opened.listener);
  REQUIRE(stream);
  opened.stream = *std::move(stream);
  return opened;
}

// In pieces of odd sizes.
void push(SpeechStream& stream, const std::vector<float>& samples, std::size_t piece = 1600) {
  const std::span<const float> all(samples);
  for (std::size_t at = 0; at < all.size(); at += piece) {
    stream.push(all.subspan(at, std::min(piece, all.size() - at)));
  }
}

}  // namespace

TEST_CASE("a stream becomes finals, in order, and one end") {
  for (const bool offline : {false, true}) {
    for (const uint32_t threads : {1U, 3U}) {
      const auto recognizer = make({.threads = threads});
      Opened opened =
          open(*recognizer, {.interim_results = !offline, .word_times = true, .offline = offline});
      push(*opened.stream, silence(20), 777);
      push(*opened.stream, toy::say(spell("hello")), 777);
      push(*opened.stream, silence(30), 100);
      push(*opened.stream, toy::say(spell("world")), 5000);
      opened.stream->finish();
      CHECK(opened.listener->wait_for_end().ok());
      CHECK(opened.listener->finals() == "h e l l o | w o r l d");
      for (const SpeechResult& result : opened.listener->results()) {
        if (!result.is_final) {
          CHECK_FALSE(offline);
          CHECK(result.stability >= 0);
          CHECK(result.stability <= 1);
          CHECK(result.words.empty());
          continue;
        }
        CHECK(result.confidence > 0.9F);
        REQUIRE(result.words.size() == 5);
        int32_t before = 0;
        for (const SpeechWord& word : result.words) {
          CHECK(word.text.size() == 1);
          CHECK(word.start_ms >= before);
          CHECK(word.end_ms > word.start_ms);
          before = word.end_ms;
        }
      }
      const std::vector<SpeechResult> results = opened.listener->results();
      REQUIRE_FALSE(results.empty());
      // Each word takes 128 ms; the first begins after 20 frames of 32 ms.
      const auto first = std::find_if(results.begin(), results.end(),
                                      [](const SpeechResult& result) { return result.is_final; });
      CHECK(first->words[0].start_ms == 640);
      CHECK(first->words[4].end_ms == 640 + 5 * 128);
    }
  }
}

TEST_CASE("silence and streams without audio end with nothing") {
  const auto recognizer = make();
  Opened nothing = open(*recognizer);
  nothing.stream->finish();
  CHECK(nothing.listener->wait_for_end().ok());
  Opened quiet = open(*recognizer, {.interim_results = true});
  push(*quiet.stream, silence(500), 4096);
  quiet.stream->finish();
  CHECK(quiet.listener->wait_for_end().ok());
  CHECK(quiet.listener->results().empty());
  CHECK(recognizer->statistics().finals == 0);
}

TEST_CASE("an end that is forced gives a final, and the stream goes on") {
  const auto recognizer = make();
  Opened opened = open(*recognizer);
  push(*opened.stream, toy::say(spell("abc")));
  opened.stream->force_end_of_utterance();
  opened.listener->wait([](Listener&) { return true; });
  push(*opened.stream, toy::say(spell("def")));
  opened.stream->force_end_of_utterance();
  opened.stream->force_end_of_utterance();
  opened.stream->finish();
  CHECK(opened.listener->wait_for_end().ok());
  CHECK(opened.listener->finals() == "a b c | d e f");
}

TEST_CASE("many streams at once are each as alone") {
  const auto recognizer = make({.threads = 2});
  std::vector<Opened> streams;
  std::vector<std::string> expected;
  for (int i = 0; i < 24; ++i) {
    streams.push_back(open(*recognizer, {.interim_results = i % 3 != 0, .offline = i % 4 == 3}));
    std::string said;
    for (int j = 0; j < 4 + i % 7; ++j) said += static_cast<char>('a' + (i + j * j) % 26);
    push(*streams.back().stream, silence(static_cast<std::size_t>(i)), 999);
    push(*streams.back().stream, toy::say(spell(said)), 999);
    push(*streams.back().stream, silence(25), 999);
    push(*streams.back().stream, toy::say(spell("xyz")), 999);
    streams.back().stream->finish();
    std::string text;
    for (const char c : said) text += (text.empty() ? "" : " ") + std::string(1, c);
    expected.push_back(text + " | x y z");
  }
  for (std::size_t i = 0; i < streams.size(); ++i) {
    CHECK(streams[i].listener->wait_for_end().ok());
    CHECK(streams[i].listener->finals() == expected[i]);
  }
  const SpeechStatistics statistics = recognizer->statistics();
  CHECK(statistics.streams_started == 24);
  CHECK(statistics.open_streams == 24);
  CHECK(statistics.finals == 48);
  streams.clear();
  CHECK(recognizer->statistics().open_streams == 0);
}

TEST_CASE("streams that vanish tell nothing more and hold up nobody") {
  const auto recognizer = make({.threads = 2});
  std::vector<std::shared_ptr<Listener>> gone;
  for (int i = 0; i < 50; ++i) {
    Opened opened = open(*recognizer, {.interim_results = true});
    push(*opened.stream, toy::say(spell("abcdefgh")));
    if (i % 2 == 0) opened.stream->finish();
    gone.push_back(opened.listener);
  }
  Opened opened = open(*recognizer);
  push(*opened.stream, toy::say(spell("hello")));
  opened.stream->finish();
  CHECK(opened.listener->wait_for_end().ok());
  CHECK(opened.listener->finals() == "h e l l o");
  CHECK(recognizer->statistics().open_streams == 1);
}

TEST_CASE("a sender that is too fast is told, and told when there is room") {
  std::mutex gate;
  std::unique_lock closed(gate);
  const auto slow = [&gate](const std::vector<toy::Tensor>& in, std::vector<toy::Tensor>& out) {
    const std::lock_guard wait(gate);
    return toy::hear(in, out);
  };
  const auto recognizer = make({.max_backlog_s = 2}, {}, toy::voice_activity(slow));
  Opened opened = open(*recognizer);
  push(*opened.stream, silence(40));
  CHECK_FALSE(opened.stream->backlog_full());
  push(*opened.stream, silence(40));
  CHECK(opened.stream->backlog_full());
  CHECK(opened.listener->rooms() == 0);
  closed.unlock();
  opened.listener->wait([](const Listener& self) { return self.rooms() == 1; });
  CHECK_FALSE(opened.stream->backlog_full());
  opened.stream->finish();
  CHECK(opened.listener->wait_for_end().ok());
}

TEST_CASE("too many streams, phrases and impossible thresholds are refused") {
  const auto recognizer = make({.max_streams = 1});
  const auto refused = [&](const SpeechOptions& options) {
    const auto stream = recognizer->open(options, std::make_shared<Listener>());
    REQUIRE_FALSE(stream);
    return stream.error().code();
  };
  SpeechOptions phrases;
  phrases.phrases.push_back({"headrace", 10});
  CHECK(refused(phrases) == StatusCode::kUnimplemented);
  SpeechOptions threshold;
  threshold.endpointing.stop_threshold = 1.5F;
  CHECK(refused(threshold) == StatusCode::kInvalidArgument);
  SpeechOptions history;
  history.endpointing.stop_history_ms = 1'000'000;
  CHECK(refused(history) == StatusCode::kInvalidArgument);
  const Opened opened = open(*recognizer);
  CHECK(refused({}) == StatusCode::kResourceExhausted);
  CHECK(recognizer->statistics().streams_refused == 1);
}

TEST_CASE("networks that fail end their streams with the error, and others go on") {
  const auto broken = [](const std::vector<toy::Tensor>& in, std::vector<toy::Tensor>& out) {
    // Of who says 'b'.
    const float* const heard = in[0].as<float>();
    if (std::find(heard, heard + in[0].shape[1], 0.011F) != heard + in[0].shape[1]) {
      return Status::internal("out of ink");
    }
    return toy::encode(in, out);
  };
  const auto recognizer =
      make({}, *SegmentNetwork::create(toy::options(), toy::encoder(broken), toy::decoder()));
  Opened bad = open(*recognizer);
  push(*bad.stream, toy::say(spell("ab")));
  bad.stream->finish();
  const Status status = bad.listener->wait_for_end();
  CHECK(status.code() == StatusCode::kInternal);
  CHECK(status.message() == "out of ink");
  Opened good = open(*recognizer);
  push(*good.stream, toy::say(spell("ac")));
  good.stream->finish();
  CHECK(good.listener->wait_for_end().ok());
  CHECK(good.listener->finals() == "a c");
}

TEST_CASE("an engine that goes ends its streams") {
  auto recognizer = make();
  Opened opened = open(*recognizer);
  push(*opened.stream, toy::say(spell("abc")));
  recognizer.reset();
  CHECK(opened.listener->wait_for_end().code() == StatusCode::kUnavailable);
  push(*opened.stream, silence(10));
  opened.stream->finish();
}

TEST_CASE("long speech is told piece by piece, and nothing is lost") {
  const auto recognizer = make();
  std::string said;
  std::string expected;
  for (int i = 0; i < 150; ++i) said += static_cast<char>('a' + (i * i + i / 7) % 26);
  Opened opened = open(*recognizer);
  push(*opened.stream, toy::say(spell(said)));
  opened.stream->finish();
  CHECK(opened.listener->wait_for_end().ok());
  const std::string finals = opened.listener->finals();
  CHECK(finals.find('|') != std::string::npos);
  std::string heard;
  for (const char c : finals) {
    if (c >= 'a' && c <= 'z') heard += c;
  }
  // A word may be cut, never a run of them.
  CHECK(heard.size() + 2 >= said.size());
}
