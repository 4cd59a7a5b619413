#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>

#include "backends/backend.h"
#include "bindings/bindings.h"
#include "bindings/python_status.h"
#include "speech/recognizer.h"
#include "speech/segment_decoder.h"
#include "speech/speech_engine.h"
#include "speech/streaming_engine.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

using Samples = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::span<const float> span_of(const Samples& samples) {
  if (samples.ndim() != 1) throw py::value_error("samples: expected one dimension");
  return {samples.data(), static_cast<std::size_t>(samples.size())};
}

py::dict histogram_of(const Histogram::Values& values) {
  return py::dict("buckets"_a = std::vector<uint64_t>(values.buckets.begin(), values.buckets.end()),
                  "count"_a = values.count, "sum"_a = values.sum_ns);
}

py::dict result_of(const SpeechResult& result) {
  py::list words;
  for (const SpeechWord& word : result.words) {
    words.append(py::dict("text"_a = word.text, "start_ms"_a = word.start_ms,
                          "end_ms"_a = word.end_ms, "confidence"_a = word.confidence));
  }
  return py::dict("transcript"_a = result.transcript, "is_final"_a = result.is_final,
                  "stability"_a = result.stability, "confidence"_a = result.confidence,
                  "words"_a = std::move(words), "audio_processed_s"_a = result.audio_processed_s);
}

// Keeps what a stream answers until Python asks for it.
class Answers final : public SpeechListener {
 public:
  void on_result(SpeechResult result) noexcept override {
    const std::lock_guard lock(mutex_);
    results_.push_back(std::move(result));
    wake_.notify_all();
  }
  void on_end(Status status) noexcept override {
    const std::lock_guard lock(mutex_);
    end_ = std::move(status);
    wake_.notify_all();
  }
  void on_room() noexcept override {}

  // nullopt: nothing came in time, or the stream has ended.
  std::optional<SpeechResult> next(Nanoseconds timeout) {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, std::min(timeout, Nanoseconds(std::chrono::hours(1))),
                   [this] { return !results_.empty() || end_; });
    if (results_.empty()) return std::nullopt;
    SpeechResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }
  std::optional<Status> end() {
    const std::lock_guard lock(mutex_);
    if (!results_.empty()) return std::nullopt;
    return end_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<SpeechResult> results_;  // guarded by mutex_, as is
  std::optional<Status> end_;
};

// A SpeechStream and what it answered.
struct Conversation {
  std::shared_ptr<SpeechRecognizer> recognizer;  // outlives the stream
  std::shared_ptr<Answers> answers;
  std::unique_ptr<SpeechStream> stream;
};

SpeechStream& open_stream(Conversation& self) {
  if (self.stream == nullptr) throw py::value_error("the stream is closed");
  return *self.stream;
}

SegmentOptions segment_options(std::vector<int64_t> prompt, int64_t eos,
                               float max_tokens_per_second, float min_context_s,
                               std::vector<int64_t> suppressed,
                               std::vector<int64_t> suppressed_first) {
  SegmentOptions options;
  options.prompt = std::move(prompt);
  options.eos = eos;
  options.max_tokens_per_second = max_tokens_per_second;
  options.min_context_s = min_context_s;
  options.suppressed = std::move(suppressed);
  options.suppressed_first = std::move(suppressed_first);
  return options;
}

// What a streaming recogniser is made of, as Python gives it.
struct StreamingParts {
  std::shared_ptr<Model> encoder;
  std::shared_ptr<Model> decoder;  // null: CTC
  std::shared_ptr<Model> joiner;
  std::string tokens;
  int64_t blank = 0;
  int64_t unknown = -1;
  StreamingNetworkOptions network;
  StreamingEngineOptions engine;
};

Result<std::shared_ptr<SpeechRecognizer>> make_streaming(StreamingParts parts) {
  Result<TokenTable> table = TokenTable::load(parts.tokens);
  if (!table) return table.error();
  StreamingNetworks networks;
  networks.blank = parts.blank;
  auto encoder = StreamingNetwork::create(std::move(parts.network), std::move(parts.encoder));
  if (!encoder) return encoder.error();
  networks.encoder = *std::move(encoder);
  if (parts.decoder != nullptr && parts.joiner != nullptr) {
    auto transducer = TransducerNetwork::create(parts.blank, parts.unknown,
                                                std::move(parts.decoder), std::move(parts.joiner));
    if (!transducer) return transducer.error();
    networks.transducer = *std::move(transducer);
  }
  return make_streaming_engine(std::move(parts.engine), std::move(networks), *std::move(table));
}

Fbank::Kind fbank_kind(const std::string& name) {
  if (name == "kaldi") return Fbank::Kind::kKaldi;
  if (name == "nemo") return Fbank::Kind::kNemo;
  if (name == "librosa") return Fbank::Kind::kLibrosa;
  throw py::value_error("features: kaldi, nemo or librosa");
}

py::array_t<float> fbank_of(const Samples& samples, const std::string& kind, std::size_t bands) {
  if (bands < 3 || bands > 256) throw py::value_error("bands: 3 to 256");
  FbankStream stream(std::make_shared<Fbank>(fbank_kind(kind), bands));
  stream.push(span_of(samples));
  py::array_t<float> features({stream.frames(), bands});
  std::copy_n(stream.data(), stream.frames() * bands, features.mutable_data());
  return features;
}

}  // namespace

void bind_speech(py::module_& module) {
  py::class_<Conversation>(module, "SpeechStream")
      .def(
          "push",
          [](Conversation& self, const Samples& samples) {
            open_stream(self).push(span_of(samples));
          },
          "samples"_a)
      .def_property_readonly("backlog_full",
                             [](Conversation& self) { return open_stream(self).backlog_full(); })
      .def("force_end_of_utterance",
           [](Conversation& self) { open_stream(self).force_end_of_utterance(); })
      .def("finish", [](Conversation& self) { open_stream(self).finish(); })
      .def("close", [](Conversation& self) { self.stream.reset(); })
      .def(
          "next",
          [](Conversation& self, double timeout_s) -> std::optional<py::dict> {
            const std::optional<SpeechResult> result = [&] {
              const py::gil_scoped_release release;
              return self.answers->next(nanoseconds_of(timeout_s));
            }();
            if (result) return result_of(*result);
            if (const std::optional<Status> end = self.answers->end()) raise_unless_ok(*end);
            return std::nullopt;
          },
          "timeout_s"_a = 60.0)
      .def_property_readonly("ended",
                             [](Conversation& self) { return self.answers->end().has_value(); });

  py::class_<SpeechRecognizer, std::shared_ptr<SpeechRecognizer>>(module, "SpeechRecognizer")
      .def(py::init(
               [](std::string name, std::string language_code,
                  std::map<std::string, std::string> parameters, std::shared_ptr<Model> encoder,
                  std::shared_ptr<Model> decoder, std::shared_ptr<Model> vad,
                  const std::string& tokens, std::vector<int64_t> prompt, int64_t eos,
                  float max_tokens_per_second, float min_context_s, std::vector<int64_t> suppressed,
                  std::vector<int64_t> suppressed_first, uint32_t threads, std::size_t max_streams,
                  std::size_t max_batch, uint32_t max_wait_ms, bool low_priority) {
                 Result<std::shared_ptr<SpeechRecognizer>> made = [&] {
                   const py::gil_scoped_release release;
                   using Made = Result<std::shared_ptr<SpeechRecognizer>>;
                   Result<TokenTable> table = TokenTable::load(tokens);
                   if (!table) return Made(table.error());
                   auto network = SegmentNetwork::create(
                       segment_options(std::move(prompt), eos, max_tokens_per_second, min_context_s,
                                       std::move(suppressed), std::move(suppressed_first)),
                       std::move(encoder), std::move(decoder));
                   if (!network) return Made(network.error());
                   SpeechEngineOptions options;
                   options.info.name = std::move(name);
                   options.info.language_code = std::move(language_code);
                   options.info.parameters = std::move(parameters);
                   options.threads = threads;
                   options.max_streams = max_streams;
                   options.max_batch = max_batch;
                   options.max_wait = Milliseconds(max_wait_ms);
                   options.low_priority = low_priority;
                   return make_speech_engine(std::move(options), *std::move(network),
                                             std::move(vad), *std::move(table));
                 }();
                 return value_or_raise(std::move(made));
               }),
           py::kw_only(), "name"_a, "language_code"_a, "parameters"_a, "encoder"_a, "decoder"_a,
           "vad"_a, "tokens"_a, "prompt"_a, "eos"_a, "max_tokens_per_second"_a, "min_context_s"_a,
           "suppressed"_a = std::vector<int64_t>(), "suppressed_first"_a = std::vector<int64_t>(),
           "threads"_a = 1, "max_streams"_a = 1024, "max_batch"_a = 4, "max_wait_ms"_a = 1000,
           "low_priority"_a = false)
      .def_static(
          "streaming",
          [](std::string name, std::string language_code,
             std::map<std::string, std::string> parameters, std::shared_ptr<Model> encoder,
             std::shared_ptr<Model> decoder, std::shared_ptr<Model> joiner, std::string tokens,
             int64_t blank, int64_t unknown, const std::string& features, std::size_t chunk_frames,
             std::size_t shift_frames, std::map<std::string, std::vector<int64_t>> caches,
             std::size_t paths, uint32_t stop_ms, uint32_t tail_ms, uint32_t threads,
             std::size_t max_streams, std::size_t max_batch, uint32_t max_wait_ms,
             bool low_priority) {
            if ((decoder == nullptr) != (joiner == nullptr)) {
              throw py::value_error("a transducer has a decoder and a joiner");
            }
            StreamingParts parts;
            parts.encoder = std::move(encoder);
            parts.decoder = std::move(decoder);
            parts.joiner = std::move(joiner);
            parts.tokens = std::move(tokens);
            parts.blank = blank;
            parts.unknown = unknown;
            parts.network = {chunk_frames, shift_frames, std::move(caches)};
            StreamingEngineOptions& engine = parts.engine;
            engine.info.name = std::move(name);
            engine.info.language_code = std::move(language_code);
            engine.info.parameters = std::move(parameters);
            engine.features = fbank_kind(features);
            engine.paths = paths;
            engine.stop_ms = stop_ms;
            engine.tail_ms = tail_ms;
            engine.threads = threads;
            engine.max_streams = max_streams;
            engine.max_batch = max_batch;
            engine.max_wait = Milliseconds(max_wait_ms);
            engine.low_priority = low_priority;
            Result<std::shared_ptr<SpeechRecognizer>> made = [&] {
              const py::gil_scoped_release release;
              return make_streaming(std::move(parts));
            }();
            return value_or_raise(std::move(made));
          },
          py::kw_only(), "name"_a, "language_code"_a, "parameters"_a, "encoder"_a,
          "decoder"_a = std::shared_ptr<Model>(), "joiner"_a = std::shared_ptr<Model>(), "tokens"_a,
          "blank"_a = 0, "unknown"_a = -1, "features"_a = "kaldi", "chunk_frames"_a,
          "shift_frames"_a, "caches"_a = std::map<std::string, std::vector<int64_t>>(),
          "paths"_a = 1, "stop_ms"_a = 320, "tail_ms"_a = 800, "threads"_a = 1,
          "max_streams"_a = 1024, "max_batch"_a = 8, "max_wait_ms"_a = 1000,
          "low_priority"_a = false)
      .def_property_readonly("info",
                             [](const SpeechRecognizer& self) {
                               const SpeechModelInfo& info = self.info();
                               return py::dict(
                                   "name"_a = info.name, "language_code"_a = info.language_code,
                                   "offline"_a = info.offline, "streaming"_a = info.streaming,
                                   "parameters"_a = info.parameters);
                             })
      .def("statistics",
           [](const SpeechRecognizer& self) {
             const SpeechStatistics s = self.statistics();
             return py::dict(
                 "open_streams"_a = s.open_streams, "streams_started"_a = s.streams_started,
                 "streams_refused"_a = s.streams_refused, "finals"_a = s.finals,
                 "partials"_a = s.partials, "partials_dropped"_a = s.partials_dropped,
                 "decoder_steps"_a = s.decoder_steps, "decoder_tokens"_a = s.decoder_tokens,
                 "audio_seconds"_a = s.audio_seconds, "busy_seconds"_a = s.busy_seconds,
                 "final_latency_ns"_a = histogram_of(s.final_latency_ns),
                 "partial_lag_ns"_a = histogram_of(s.partial_lag_ns));
           })
      .def(
          "open",
          [](const std::shared_ptr<SpeechRecognizer>& self, bool interim_results, bool word_times,
             bool offline, int32_t stop_history_ms, int32_t stop_history_eou_ms,
             const std::vector<std::pair<std::string, float>>& phrases) {
            SpeechOptions options;
            options.interim_results = interim_results;
            options.word_times = word_times;
            options.offline = offline;
            options.endpointing.stop_history_ms = stop_history_ms;
            options.endpointing.stop_history_eou_ms = stop_history_eou_ms;
            for (const auto& [text, boost] : phrases) options.phrases.push_back({text, boost});
            auto answers = std::make_shared<Answers>();
            auto stream = value_or_raise(self->open(options, answers));
            return Conversation{self, std::move(answers), std::move(stream)};
          },
          py::kw_only(), "interim_results"_a = false, "word_times"_a = false, "offline"_a = false,
          "stop_history_ms"_a = 0, "stop_history_eou_ms"_a = 0,
          "phrases"_a = std::vector<std::pair<std::string, float>>());

  module.def("fbank", &fbank_of, "samples"_a, py::kw_only(), "kind"_a = "kaldi", "bands"_a = 80);
}

}  // namespace headrace
