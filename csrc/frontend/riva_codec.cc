#include "frontend/riva_codec.h"

#include <cmath>
#include <cstring>
#include <protozero/pbf_message.hpp>
#include <protozero/pbf_writer.hpp>

#include "frontend/infer_codec.h"
#include "rpc/call.h"

namespace headrace {
namespace {

using protozero::pbf_reader;
using protozero::pbf_wire_type;
using protozero::pbf_writer;

constexpr protozero::pbf_tag_type kIdTag = 100;

class NotUtf8 : public protozero::exception {};

std::string_view bytes_of(pbf_reader& reader) {
  const protozero::data_view view = reader.get_view();
  return {view.data(), view.size()};
}

std::string_view text_of(pbf_reader& reader) {
  const std::string_view text = bytes_of(reader);
  if (!valid_utf8(text)) throw NotUtf8();
  return text;
}

// Whether this is field `tag` in the wire form that it should have: in another, it is unknown.
bool is(const pbf_reader& reader, protozero::pbf_tag_type tag, pbf_wire_type type) {
  return reader.tag() == tag && reader.wire_type() == type;
}
bool is_bytes(const pbf_reader& reader, protozero::pbf_tag_type tag) {
  return is(reader, tag, pbf_wire_type::length_delimited);
}
bool is_number(const pbf_reader& reader, protozero::pbf_tag_type tag) {
  return is(reader, tag, pbf_wire_type::varint);
}
bool is_float(const pbf_reader& reader, protozero::pbf_tag_type tag) {
  return is(reader, tag, pbf_wire_type::fixed32);
}

void read_phrases(pbf_reader context, std::vector<SpeechPhrase>& phrases) {
  const std::size_t first = phrases.size();
  float boost = 0;
  while (context.next()) {
    if (is_bytes(context, 1)) {
      const std::string_view phrase = text_of(context);
      // One more than is allowed tells that there were too many.
      if (phrases.size() <= kMaxRivaPhrases) phrases.push_back({std::string(phrase), 0});
    } else if (is_float(context, 4)) {
      boost = context.get_float();
    } else {
      context.skip();
    }
  }
  if (!std::isfinite(boost)) boost = 0;
  for (std::size_t i = first; i < phrases.size(); ++i) phrases[i].boost = boost;
}

void read_endpointing(pbf_reader reader, SpeechEndpointing& endpointing) {
  const auto share = [&] {
    const float value = reader.get_float();
    return std::isfinite(value) ? value : 0;
  };
  while (reader.next()) {
    if (is_number(reader, 1)) {
      endpointing.start_history_ms = reader.get_int32();
    } else if (is_float(reader, 2)) {
      endpointing.start_threshold = share();
    } else if (is_number(reader, 3)) {
      endpointing.stop_history_ms = reader.get_int32();
    } else if (is_float(reader, 4)) {
      endpointing.stop_threshold = share();
    } else if (is_number(reader, 5)) {
      endpointing.stop_history_eou_ms = reader.get_int32();
    } else if (is_float(reader, 6)) {
      endpointing.stop_threshold_eou = share();
    } else {
      reader.skip();
    }
  }
}

bool read_diarization(pbf_reader reader) {
  bool enabled = false;
  while (reader.next()) {
    if (is_number(reader, 1)) {
      enabled = reader.get_bool();
    } else {
      reader.skip();
    }
  }
  return enabled;
}

// Fields that nothing here acts on are checked for what protobuf asks of them, no more.
void read_config(pbf_reader reader, RivaConfig& config) {
  while (reader.next()) {
    if (is_number(reader, 1)) {
      config.encoding = static_cast<AudioEncoding>(reader.get_enum());
    } else if (is_number(reader, 2)) {
      config.sample_rate_hertz = reader.get_int32();
    } else if (is_bytes(reader, 3)) {
      config.language_code = text_of(reader);
    } else if (is_number(reader, 5)) {
      config.profanity_filter = reader.get_bool();
    } else if (is_bytes(reader, 6)) {
      read_phrases(reader.get_message(), config.phrases);
    } else if (is_number(reader, 7)) {
      config.audio_channel_count = reader.get_int32();
    } else if (is_number(reader, 8)) {
      config.word_time_offsets = reader.get_bool();
    } else if (is_number(reader, 12)) {
      config.separate_channels = reader.get_bool();
    } else if (is_bytes(reader, 13)) {
      config.model = text_of(reader);
    } else if (is_bytes(reader, 19)) {
      config.speaker_diarization = read_diarization(reader.get_message());
    } else if (is_bytes(reader, 25)) {
      read_endpointing(reader.get_message(), config.endpointing);
    } else {
      reader.skip();
    }
  }
}

std::string_view read_id(pbf_reader reader) {
  std::string_view id;
  while (reader.next()) {
    if (is_bytes(reader, 1)) {
      id = text_of(reader);
    } else {
      reader.skip();
    }
  }
  return id;
}

// Of `runtime_config`, an entry: whether it says force_eou = true.
bool read_force_eou(pbf_reader entry) {
  std::string_view key;
  std::string_view value;
  while (entry.next()) {
    if (is_bytes(entry, 1)) {
      key = text_of(entry);
    } else if (is_bytes(entry, 2)) {
      value = text_of(entry);
    } else {
      entry.skip();
    }
  }
  return key == "force_eou" && (value == "true" || value == "True" || value == "1");
}

Status check(const RivaConfig& config) {
  if (config.phrases.size() > kMaxRivaPhrases) {
    return Status::invalid_argument("more than " + std::to_string(kMaxRivaPhrases) +
                                    " phrases in speech_contexts");
  }
  return check_phrase_sizes(config.phrases);
}

template <class Message, class Read>
Result<Message> decode(std::string_view bytes, Read&& read) {
  Message message;
  try {
    pbf_reader reader(bytes.data(), bytes.size());
    while (reader.next()) read(reader, message);
  } catch (const protozero::exception&) {
    return Status::internal("Exception deserializing request!");
  }
  return message;
}

// A `string` field must be UTF-8, whatever a model makes.
void add_text(pbf_writer& writer, protozero::pbf_tag_type tag, std::string_view text,
              std::string_view after = {}) {
  std::string whole(text);
  if (!valid_utf8(whole)) {
    for (char& c : whole) {
      if ((c & 0x80) != 0) c = '?';
    }
  }
  writer.add_string(tag, whole.append(after));
}

void write_alternative(pbf_writer& result, const SpeechResult& from,
                       const RivaResultContext& context) {
  pbf_writer alternative(result, 1);
  // Clients put the transcripts of utterances together as they come.
  add_text(alternative, 1, from.transcript, from.transcript.empty() ? "" : " ");
  if (from.is_final) {
    if (from.confidence != 0) alternative.add_float(2, from.confidence);
    for (const SpeechWord& word : from.words) {
      pbf_writer info(alternative, 3);
      info.add_int32(1, word.start_ms);
      info.add_int32(2, word.end_ms);
      add_text(info, 3, word.text);
      if (word.confidence != 0) info.add_float(4, word.confidence);
    }
  }
  if (!context.language_code.empty()) add_text(alternative, 4, context.language_code);
}

void write_id(std::string& bytes, std::string_view id) {
  if (id.empty()) return;
  pbf_writer message(bytes);
  pbf_writer value(message, kIdTag);
  value.add_bytes(1, id.data(), id.size());
}

BufferRef buffer_of(const std::string& bytes) {
  BufferRef buffer = BufferRef::allocate(bytes.size());
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return buffer;
}

void add_entry(pbf_writer& message, std::string_view key, std::string_view value) {
  pbf_writer entry(message, 2);
  add_text(entry, 1, key);
  add_text(entry, 2, value);
}

void add_model(pbf_writer& response, const SpeechModelInfo& model, std::string_view type) {
  pbf_writer config(response, 1);
  add_text(config, 1, model.name);
  for (const auto& [key, value] : model.parameters) {
    if (key != "type" && key != "language_code") add_entry(config, key, value);
  }
  add_entry(config, "type", type);
  add_entry(config, "language_code", model.language_code);
}

}  // namespace

Result<RivaStreamMessage> decode_riva_stream_message(std::string_view message) {
  Result<RivaStreamMessage> decoded =
      decode<RivaStreamMessage>(message, [](pbf_reader& reader, RivaStreamMessage& to) {
        if (is_bytes(reader, 1)) {
          if (!to.config) to.config.emplace();
          to.audio = {};  // of a oneof the last one counts
          pbf_reader streaming(reader.get_message());
          while (streaming.next()) {
            if (is_bytes(streaming, 1)) {
              read_config(streaming.get_message(), *to.config);
            } else if (is_number(streaming, 2)) {
              to.config->interim_results = streaming.get_bool();
            } else {
              streaming.skip();
            }
          }
        } else if (is_bytes(reader, 2)) {
          to.config.reset();
          to.audio = bytes_of(reader);
        } else if (is_bytes(reader, 3)) {
          to.force_end_of_utterance |= read_force_eou(reader.get_message());
        } else if (is_bytes(reader, kIdTag)) {
          to.id = read_id(reader.get_message());
        } else {
          reader.skip();
        }
      });
  if (decoded && decoded->config) {
    Status status = check(*decoded->config);
    if (!status.ok()) return status;
  }
  return decoded;
}

Result<RivaRecognizeRequest> decode_riva_recognize_request(std::string_view message) {
  Result<RivaRecognizeRequest> decoded =
      decode<RivaRecognizeRequest>(message, [](pbf_reader& reader, RivaRecognizeRequest& to) {
        if (is_bytes(reader, 1)) {
          read_config(reader.get_message(), to.config);
        } else if (is_bytes(reader, 2)) {
          to.audio = bytes_of(reader);
        } else if (is_bytes(reader, kIdTag)) {
          to.id = read_id(reader.get_message());
        } else {
          reader.skip();
        }
      });
  if (decoded) {
    Status status = check(decoded->config);
    if (!status.ok()) return status;
  }
  return decoded;
}

Result<std::string_view> decode_riva_config_request(std::string_view message) {
  return decode<std::string_view>(message, [](pbf_reader& reader, std::string_view& name) {
    if (is_bytes(reader, 1)) {
      name = text_of(reader);
    } else {
      reader.skip();
    }
  });
}

BufferRef encode_riva_stream_result(const SpeechResult& result, const RivaResultContext& context,
                                    std::string_view id) {
  std::string bytes(Call::kPrefixBytes, '\0');
  {
    pbf_writer response(bytes);
    pbf_writer one(response, 1);
    write_alternative(one, result, context);
    if (result.is_final) one.add_bool(2, true);
    if (!result.is_final && result.stability != 0) one.add_float(3, result.stability);
    if (context.channel_tag != 0) one.add_int32(5, context.channel_tag);
    one.add_float(6, static_cast<float>(result.audio_processed_s));
  }
  write_id(bytes, id);
  return buffer_of(bytes);
}

RivaRecognizeResponse::RivaRecognizeResponse() : bytes_(Call::kPrefixBytes, '\0') {}

void RivaRecognizeResponse::add(const SpeechResult& result, const RivaResultContext& context) {
  pbf_writer response(bytes_);
  pbf_writer one(response, 1);
  write_alternative(one, result, context);
  if (context.channel_tag != 0) one.add_int32(2, context.channel_tag);
  one.add_float(3, static_cast<float>(result.audio_processed_s));
}

BufferRef RivaRecognizeResponse::finish(std::string_view id) {
  write_id(bytes_, id);
  return buffer_of(bytes_);
}

BufferRef encode_riva_config(const std::vector<const SpeechModelInfo*>& models) {
  std::string bytes(Call::kPrefixBytes, '\0');
  pbf_writer response(bytes);
  for (const SpeechModelInfo* model : models) {
    if (model->streaming) add_model(response, *model, "online");
    if (model->offline) add_model(response, *model, "offline");
  }
  return buffer_of(bytes);
}

}  // namespace headrace
