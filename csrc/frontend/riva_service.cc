#include "frontend/riva_service.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "frontend/rpc_rights.h"

namespace headrace {
namespace {

const std::string kService = "/nvidia.riva.asr.RivaSpeechRecognition/";
constexpr std::size_t kModelsRequestBytes = 64 * 1024;
// Of audio, some thousand samples each: what a turn of the loop decodes of one call.
constexpr int kBlocksATurn = 16;

Status check_config(const RivaConfig& config) {
  switch (config.encoding) {
    case AudioEncoding::kUnspecified:
    case AudioEncoding::kLinearPcm:
    case AudioEncoding::kFlac:
    case AudioEncoding::kMulaw:
    case AudioEncoding::kOggOpus:
    case AudioEncoding::kAlaw:
      break;
    default:
      return Status::invalid_argument("audio encoding " +
                                      std::to_string(static_cast<int32_t>(config.encoding)) +
                                      " is not known");
  }
  if (config.sample_rate_hertz < 0 || config.audio_channel_count < 0) {
    return Status::invalid_argument("sample_rate_hertz and audio_channel_count are not negative");
  }
  // Zero: the audio's header says it.
  Status status = check_audio_format(
      config.sample_rate_hertz == 0 ? kSpeechSampleRate
                                    : static_cast<uint64_t>(config.sample_rate_hertz),
      config.audio_channel_count == 0 ? 1 : static_cast<uint64_t>(config.audio_channel_count));
  if (!status.ok()) return status;
  if (config.profanity_filter) {
    return Status::unimplemented("profanity_filter is not supported: the transcript is verbatim");
  }
  if (config.speaker_diarization) {
    return Status::unimplemented("speaker diarization is not supported");
  }
  return {};
}

AudioOptions audio_options(const RivaConfig& config) {
  AudioOptions options;
  options.encoding = config.encoding;
  options.sample_rate = static_cast<uint32_t>(config.sample_rate_hertz);
  options.channels = static_cast<uint32_t>(config.audio_channel_count);
  options.separate_channels = config.separate_channels;
  return options;
}

}  // namespace

// A call's context.
struct RivaService::Recognition {
  struct Channel {
    std::shared_ptr<RivaMailbox> mailbox;
    std::unique_ptr<SpeechStream> stream;
    std::vector<SpeechResult> finals;  // of a file
    bool ended = false;
  };

  bool room() const {
    for (const Channel& channel : channels) {
      if (channel.stream->backlog_full()) return false;
    }
    return true;
  }

  Recognitions::iterator self;
  uint64_t call = 0;
  bool file = false;
  std::string id;
  std::shared_ptr<SpeechRecognizer> recognizer;  // outlives the channels' streams
  SpeechOptions options;
  bool separate = false;
  std::vector<Channel> channels;
  std::optional<AudioReader> reader;  // configured
  BufferRef message;                  // whose audio is being read
  bool reading = false;               // there is more of it
  bool force_after = false;           // it ends an utterance
  bool asked = false;                 // for the next message
  bool last_message = false;          // no more audio comes
  bool reader_ended = false;          // the reader knows that
  bool finished = false;              // the streams do
};

class RivaService::StreamHandler final : public Handler {
 public:
  explicit StreamHandler(RivaService& service) : service_(service) {}

  void on_open(Call& call) override {
    Status quota = call.take_quota();
    if (!quota.ok()) return call.fail(quota);
    Recognition& recognition = service_.begin(call, false);
    call.send_headers();
    recognition.asked = true;
    call.request_messages(1);
  }

  void on_message(Call& call, BufferRef message) override {
    Recognition& recognition = *static_cast<Recognition*>(call.context);
    recognition.asked = false;
    if (recognition.last_message) return;  // by end_streams()
    Result<RivaStreamMessage> decoded = decode_riva_stream_message(message.view());
    if (!decoded) return service_.fail(call, decoded.error());
    if (recognition.id.empty()) recognition.id = decoded->id;
    if (decoded->config) {
      Status status =
          recognition.reader.has_value()
              ? Status::invalid_argument("only the first message has a streaming_config")
              : service_.configure(recognition, *decoded->config);
      if (!status.ok()) return service_.fail(call, status);
    } else if (!recognition.reader.has_value()) {
      return service_.fail(
          call, Status::invalid_argument("the first message must have a streaming_config"));
    }
    recognition.force_after = decoded->force_end_of_utterance;
    recognition.reader->feed(std::as_bytes(std::span(decoded->audio)));
    recognition.message = std::move(message);
    recognition.reading = true;
    service_.advance(call, recognition);
  }

  void on_half_close(Call& call) override {
    Recognition& recognition = *static_cast<Recognition*>(call.context);
    if (!recognition.reader.has_value()) {
      return service_.fail(call, Status::invalid_argument("the stream has no streaming_config"));
    }
    recognition.last_message = true;
    service_.advance(call, recognition);
  }

  void on_writable(Call& call) override {
    service_.advance(call, *static_cast<Recognition*>(call.context));
  }

  void on_cancel(Call& call) override { service_.drop(call); }

 private:
  RivaService& service_;
};

class RivaService::FileHandler final : public Handler {
 public:
  explicit FileHandler(RivaService& service) : service_(service) {}

  void on_unary(Call& call, BufferRef message) override {
    Result<RivaRecognizeRequest> decoded = decode_riva_recognize_request(message.view());
    if (!decoded) return call.fail(decoded.error());
    if (decoded->audio.empty())
      return call.fail(Status::invalid_argument("the request has no audio"));
    Recognition& recognition = service_.begin(call, true);
    recognition.id = decoded->id;
    Status status = service_.configure(recognition, decoded->config);
    if (!status.ok()) return service_.fail(call, status);
    recognition.reader->feed(std::as_bytes(std::span(decoded->audio)));
    recognition.message = std::move(message);
    recognition.reading = true;
    recognition.last_message = true;
    service_.advance(call, recognition);
  }

  void on_cancel(Call& call) override { service_.drop(call); }

 private:
  RivaService& service_;
};

class RivaService::ModelsHandler final : public Handler {
 public:
  explicit ModelsHandler(RivaService& service) : service_(service) {}

  void on_unary(Call& call, BufferRef message) override {
    const Result<std::string_view> name = decode_riva_config_request(message.view());
    if (!name) return call.fail(name.error());
    const SpeechTable& table = service_.table_.get();
    std::vector<const SpeechModelInfo*> infos;
    for (const auto& [model, recognizer] : table.models) {
      if (name->empty() || *name == model) infos.push_back(&recognizer->info());
    }
    if (infos.empty() && !name->empty()) {
      return call.fail(Status::not_found("speech model '" + std::string(*name) +
                                         "' is not found; there are: " + table.names()));
    }
    std::vector<BodyPiece> rest;
    call.respond(encode_riva_config(infos), rest);
  }

  void on_cancel(Call&) override {}

 private:
  RivaService& service_;
};

RivaService::RivaService(EventLoop& loop, CallSet& calls, ServerState& state)
    : loop_(loop),
      calls_(calls),
      state_(state),
      table_(state.speech),
      news_(std::make_shared<RivaNews>(loop)) {
  loop_.add_inbox(*this);
}

RivaService::~RivaService() { news_->close(); }

void RivaService::add_to(MethodTable& methods, std::size_t max_message_bytes) {
  const auto add = [&](const char* name, std::unique_ptr<Handler> handler, std::size_t limit,
                       MethodKind kind) {
    std::string path = kService + name;
    const Right right = right_of_rpc(path);
    methods.add(std::move(path), {handler.get(), limit, kind, right});
    handlers_.push_back(std::move(handler));
  };
  add("StreamingRecognize", std::make_unique<StreamHandler>(*this),
      std::min(max_message_bytes, kMaxStreamMessage), MethodKind::kBidiStreaming);
  add("Recognize", std::make_unique<FileHandler>(*this), max_message_bytes, MethodKind::kUnary);
  add("GetRivaSpeechRecognitionConfig", std::make_unique<ModelsHandler>(*this), kModelsRequestBytes,
      MethodKind::kUnary);
}

RivaService::Recognition& RivaService::begin(Call& call, bool file) {
  Recognition& recognition = recognitions_.emplace_back();
  recognition.self = std::prev(recognitions_.end());
  recognition.call = call.id();
  recognition.file = file;
  call.context = &recognition;
  return recognition;
}

Status RivaService::configure(Recognition& recognition, const RivaConfig& config) {
  if (!ending_.ok()) return ending_;
  Status status = check_config(config);
  if (!status.ok()) return status;
  const SpeechTable& table = table_.get();
  if (table.models.empty() && !state_.ready.load(std::memory_order_acquire)) {
    return Status::unavailable("no speech model is loaded yet");
  }
  Result<std::shared_ptr<SpeechRecognizer>> chosen =
      table.choose(config.model, config.language_code, recognition.file);
  if (!chosen) return chosen.error();
  recognition.recognizer = *std::move(chosen);
  SpeechOptions& options = recognition.options;
  options.offline = recognition.file;
  options.interim_results = config.interim_results && !recognition.file;
  options.word_times = config.word_time_offsets;
  options.endpointing = config.endpointing;
  options.phrases = config.phrases;
  recognition.separate = config.separate_channels;
  recognition.reader.emplace(audio_options(config), filters_);
  return recognition.separate ? Status() : open_channels(recognition, 1);
}

Status RivaService::open_channels(Recognition& recognition, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    auto mailbox = std::make_shared<RivaMailbox>(news_, recognition.call);
    Result<std::unique_ptr<SpeechStream>> stream =
        recognition.recognizer->open(recognition.options, mailbox);
    if (!stream) return stream.error();
    recognition.channels.push_back({std::move(mailbox), *std::move(stream), {}, false});
  }
  return {};
}

void RivaService::advance(Call& call, Recognition& recognition) {
  if (!send_results(call, recognition) || !feed(call, recognition)) return;
  if (recognition.reading || recognition.asked || recognition.last_message) return;
  if (!recognition.room() || !call.writable()) return;  // told when there is
  // Last: messages come in here, and they may end the call.
  recognition.asked = true;
  call.request_messages(1);
}

bool RivaService::send_results(Call& call, Recognition& recognition) {
  bool all_ended = recognition.finished;
  for (std::size_t i = 0; i < recognition.channels.size(); ++i) {
    Recognition::Channel& channel = recognition.channels[i];
    RivaResultContext context;
    if (recognition.separate) context.channel_tag = static_cast<int32_t>(i) + 1;
    context.language_code = recognition.recognizer->info().language_code;
    while (recognition.file || call.writable()) {
      std::optional<SpeechResult> result = channel.mailbox->next();
      if (!result) break;
      if (!result->is_final && !recognition.options.interim_results) continue;
      if (recognition.file) {
        channel.finals.push_back(*std::move(result));
        continue;
      }
      std::vector<BodyPiece> none;
      if (!call.send_message(encode_riva_stream_result(*result, context, recognition.id), none)) {
        return false;  // on_cancel has dropped it
      }
    }
    std::optional<Status> ended = channel.mailbox->ended();
    if (ended && !ended->ok()) {
      fail(call, *ended);
      return false;
    }
    channel.ended |= ended.has_value();
    all_ended = all_ended && channel.ended;
  }
  if (!all_ended) return true;
  finish(call, recognition);
  return false;
}

bool RivaService::feed(Call& call, Recognition& recognition) {
  if (recognition.finished || !recognition.reader.has_value()) return true;
  int blocks = 0;
  while (true) {
    if (!recognition.reading) {
      if (!recognition.last_message || recognition.reader_ended) break;
      // What decoders and resamplers hold back.
      recognition.reader->feed({});
      recognition.reader->end();
      recognition.reader_ended = recognition.reading = true;
    }
    // Interim results are the client's affair, audio that it does not hear about is ours.
    if (!recognition.room() || (!recognition.file && !call.writable())) return true;
    if (++blocks > kBlocksATurn) {
      news_->tell(recognition.call);
      return true;
    }
    bool more = false;
    Status status = read_block(recognition, more);
    if (!status.ok()) {
      fail(call, status);
      return false;
    }
    if (!more) message_read(call, recognition);
  }
  if (!recognition.reader_ended) return true;
  recognition.finished = true;
  for (Recognition::Channel& channel : recognition.channels) channel.stream->finish();
  return send_results(call, recognition);
}

void RivaService::message_read(Call& call, Recognition& recognition) {
  recognition.reading = false;
  if (std::exchange(recognition.force_after, false)) {
    for (Recognition::Channel& channel : recognition.channels) {
      channel.stream->force_end_of_utterance();
    }
  }
  if (!recognition.file) call.release(recognition.message.size());
  recognition.message.reset();
}

Status RivaService::read_block(Recognition& recognition, bool& more) {
  AudioReader& reader = *recognition.reader;
  const Result<bool> read = reader.next();
  if (!read) return read.error();
  more = *read;
  if (reader.channels() == 0) return {};
  if (recognition.channels.empty()) {
    Status status = open_channels(recognition, reader.channels());
    if (!status.ok()) return status;
  }
  for (std::size_t i = 0; i < recognition.channels.size(); ++i) {
    if (!reader.samples(i).empty()) recognition.channels[i].stream->push(reader.samples(i));
  }
  if (recognition.file && reader.seconds() > kMaxFileSeconds) {
    return Status::invalid_argument("the audio is longer than 4 hours");
  }
  return {};
}

void RivaService::finish(Call& call, Recognition& recognition) {
  if (!recognition.file) {
    drop(call);
    return ending_.ok() ? call.finish(ending_) : call.fail(ending_);
  }
  RivaRecognizeResponse response;
  for (std::size_t i = 0; i < recognition.channels.size(); ++i) {
    RivaResultContext context;
    if (recognition.separate) context.channel_tag = static_cast<int32_t>(i) + 1;
    context.language_code = recognition.recognizer->info().language_code;
    for (const SpeechResult& result : recognition.channels[i].finals) response.add(result, context);
  }
  BufferRef message = response.finish(recognition.id);
  drop(call);
  std::vector<BodyPiece> none;
  call.respond(std::move(message), none);
}

void RivaService::fail(Call& call, const Status& status) {
  drop(call);
  call.fail(status);
}

void RivaService::drop(Call& call) {
  auto* const recognition = static_cast<Recognition*>(std::exchange(call.context, nullptr));
  recognitions_.erase(recognition->self);
}

void RivaService::end_streams(const Status& status) {
  ending_ = status;
  std::vector<uint64_t> streams;
  for (Recognition& recognition : recognitions_) {
    if (!recognition.file) streams.push_back(recognition.call);
  }
  for (const uint64_t id : streams) {
    Call* call = calls_.find(id);
    if (call == nullptr) continue;
    auto& recognition = *static_cast<Recognition*>(call->context);
    if (!recognition.reader.has_value()) {
      fail(*call, status);
      continue;
    }
    recognition.last_message = true;
    advance(*call, recognition);
  }
}

void RivaService::on_wake() {
  news_->take(woken_);
  for (const uint64_t id : woken_) {
    Call* call = calls_.find(id);
    // None, or ended since: its context is gone.
    if (call != nullptr && call->context != nullptr) {
      advance(*call, *static_cast<Recognition*>(call->context));
    }
  }
  woken_.clear();
}

}  // namespace headrace
