// Messages of nvidia.riva.asr written and read by hand, and a recogniser that the test speaks for: a test double.
#pragma once

#include <algorithm>
#include <memory>
#include <protozero/pbf_message.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "frontend/messages.h"
#include "speech/recognizer.h"

namespace headrace::testing {

struct RivaConfigFields {
  int32_t encoding = 1;  // LINEAR_PCM
  int32_t rate = 16000;
  int32_t channels = 1;
  bool separate = false;
  std::string model;
  std::string language;
  bool words = false;
  std::string more;  // further fields
};

inline std::string recognition_config(const RivaConfigFields& fields = {}) {
  return message([&](auto& w) {
           w.add_int32(1, fields.encoding);
           w.add_int32(2, fields.rate);
           if (!fields.language.empty()) w.add_string(3, fields.language);
           w.add_int32(7, fields.channels);
           w.add_bool(8, fields.words);
           w.add_bool(12, fields.separate);
           if (!fields.model.empty()) w.add_string(13, fields.model);
         }) +
         fields.more;
}

inline std::string streaming_config(const RivaConfigFields& fields = {}, bool interim = true) {
  return field(
      1, field(1, recognition_config(fields)) + message([&](auto& w) { w.add_bool(2, interim); }));
}
inline std::string audio_content(std::string_view bytes) { return field(2, bytes); }
inline std::string request_id(std::string_view id) { return field(100, field(1, id)); }
inline std::string force_eou() { return field(3, field(1, "force_eou") + field(2, "true")); }

// A result of either response.
struct RivaResult {
  std::string transcript;
  std::string id;
  bool is_final = false;
  float stability = 0;
  float confidence = 0;
  int32_t channel = 0;
  float processed = 0;
  std::vector<std::string> words;
  std::vector<int32_t> starts;
};

inline void read_alternative(protozero::pbf_reader reader, RivaResult& result) {
  while (reader.next()) {
    if (reader.tag() == 1) {
      result.transcript = reader.get_string();
    } else if (reader.tag() == 2) {
      result.confidence = reader.get_float();
    } else if (reader.tag() == 3) {
      protozero::pbf_reader word(reader.get_message());
      while (word.next()) {
        if (word.tag() == 3) {
          result.words.push_back(word.get_string());
        } else if (word.tag() == 1) {
          result.starts.push_back(word.get_int32());
        } else {
          word.skip();
        }
      }
    } else {
      reader.skip();
    }
  }
}

// All results of a response; `file`: RecognizeResponse.
inline std::vector<RivaResult> riva_results(const std::string& text, bool file = false) {
  std::vector<RivaResult> results;
  std::string id;
  protozero::pbf_reader response(text);
  while (response.next()) {
    if (response.tag() == 100) {
      protozero::pbf_reader value(response.get_message());
      while (value.next(1)) id = value.get_string();
      continue;
    }
    RivaResult& result = results.emplace_back();
    protozero::pbf_reader one(response.get_message());
    while (one.next()) {
      const uint32_t tag = one.tag();
      if (tag == 1) {
        read_alternative(one.get_message(), result);
      } else if (file && tag == 2) {
        result.channel = one.get_int32();
      } else if (file && tag == 3) {
        result.processed = one.get_float();
      } else if (!file && tag == 2) {
        result.is_final = one.get_bool();
      } else if (!file && tag == 3) {
        result.stability = one.get_float();
      } else if (!file && tag == 5) {
        result.channel = one.get_int32();
      } else if (!file && tag == 6) {
        result.processed = one.get_float();
      } else {
        one.skip();
      }
    }
  }
  for (RivaResult& result : results) result.id = id;
  return results;
}

// What became of one stream. Lives on when the stream is gone.
struct ScriptedHearing {
  SpeechOptions options;
  std::shared_ptr<SpeechListener> listener;
  std::vector<float> heard;
  int forced = 0;
  bool finished = false;
  bool gone = false;  // destroyed by the service
  bool full = false;  // what backlog_full() answers
};

// Test double: hears, and says what the test says.
class ScriptedRecognizer final : public SpeechRecognizer {
 public:
  explicit ScriptedRecognizer(std::string name = "scripted", std::string language = "en-US") {
    info_.name = std::move(name);
    info_.language_code = std::move(language);
    info_.parameters = {{"family", "test"}};
  }

  const SpeechModelInfo& info() const override { return info_; }
  SpeechModelInfo& change() { return info_; }

  Result<std::unique_ptr<SpeechStream>> open(const SpeechOptions& options,
                                             std::shared_ptr<SpeechListener> listener) override {
    if (!refusal.ok()) return refusal;
    hearings.push_back(std::make_shared<ScriptedHearing>());
    hearings.back()->options = options;
    hearings.back()->listener = std::move(listener);
    return std::unique_ptr<SpeechStream>(std::make_unique<Hearing>(hearings.back(), full_after));
  }

  Status refusal;
  std::size_t full_after = SIZE_MAX;  // samples until a stream's backlog is full
  std::vector<std::shared_ptr<ScriptedHearing>> hearings;

 private:
  class Hearing final : public SpeechStream {
   public:
    Hearing(std::shared_ptr<ScriptedHearing> state, std::size_t full_after)
        : state_(std::move(state)), full_after_(full_after) {}
    ~Hearing() override { state_->gone = true; }
    void push(std::span<const float> samples) override {
      if (state_->finished) std::abort();
      state_->heard.insert(state_->heard.end(), samples.begin(), samples.end());
      if (state_->heard.size() >= full_after_) state_->full = true;
    }
    bool backlog_full() const override { return state_->full; }
    void force_end_of_utterance() override { ++state_->forced; }
    void finish() override {
      if (state_->finished) std::abort();
      state_->finished = true;
    }

   private:
    const std::shared_ptr<ScriptedHearing> state_;
    const std::size_t full_after_;
  };

  SpeechModelInfo info_;
};

inline SpeechResult interim(std::string text, float stability = 0.5F) {
  SpeechResult result;
  result.transcript = std::move(text);
  result.stability = stability;
  return result;
}

inline SpeechResult final_result(std::string text) {
  SpeechResult result;
  result.transcript = std::move(text);
  result.is_final = true;
  result.confidence = 0.75F;
  result.audio_processed_s = 2;
  return result;
}

}  // namespace headrace::testing
