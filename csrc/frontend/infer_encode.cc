#include <cstring>
#include <protozero/pbf_writer.hpp>

#include "frontend/infer_codec.h"

namespace headrace {
namespace {

// ModelInferResponse (proto/headrace/kserve.proto).
constexpr protozero::pbf_tag_type kModelName = 1;
constexpr protozero::pbf_tag_type kModelVersion = 2;
constexpr protozero::pbf_tag_type kId = 3;
constexpr protozero::pbf_tag_type kParameters = 4;
constexpr protozero::pbf_tag_type kOutputs = 5;
constexpr protozero::pbf_tag_type kRawOutputContents = 6;
// InferOutputTensor.
constexpr protozero::pbf_tag_type kName = 1;
constexpr protozero::pbf_tag_type kDatatype = 2;
constexpr protozero::pbf_tag_type kShape = 3;

// map<string, InferParameter>.
constexpr protozero::pbf_tag_type kMapKey = 1;
constexpr protozero::pbf_tag_type kMapValue = 2;
constexpr protozero::pbf_tag_type kBoolParam = 1;
constexpr protozero::pbf_tag_type kStringParam = 3;
constexpr protozero::pbf_tag_type kDoubleParam = 4;

// Rows at or above this are sent by reference, not copied into the message.
constexpr std::size_t kByReferenceBytes = 16 * 1024;

void add(protozero::pbf_writer& writer, protozero::pbf_tag_type tag, std::string_view text) {
  writer.add_bytes(tag, text.data(), text.size());
}

void add_parameter(protozero::pbf_writer& response, std::string_view key, std::string_view text) {
  protozero::pbf_writer entry(response, kParameters);
  add(entry, kMapKey, key);
  protozero::pbf_writer value(entry, kMapValue);
  add(value, kStringParam, text);
}

void add_parameter(protozero::pbf_writer& response, std::string_view key, double number) {
  protozero::pbf_writer entry(response, kParameters);
  add(entry, kMapKey, key);
  protozero::pbf_writer value(entry, kMapValue);
  value.add_double(kDoubleParam, number);
}

void add_flag(protozero::pbf_writer& response, std::string_view key) {
  protozero::pbf_writer entry(response, kParameters);
  add(entry, kMapKey, key);
  protozero::pbf_writer value(entry, kMapValue);
  value.add_bool(kBoolParam, true);
}

// How the answer came about, for requests that a policy looked at.
void add_policy_parameters(protozero::pbf_writer& writer, const Request& request) {
  if (request.trigger != Trigger::kNone) {
    add_parameter(writer, "hr.fallback", trigger_name(request.trigger));
  }
  if (request.answered_by != nullptr) add_parameter(writer, "hr.answered_by", *request.answered_by);
  if (request.confidence) {
    add_parameter(writer, "hr.confidence", static_cast<double>(*request.confidence));
  }
  if (request.doubtful) add_flag(writer, "hr.low_confidence");
  if (!request.ticket.empty()) add_parameter(writer, "hr.ticket", request.ticket);
}

BufferRef buffer_of(std::string_view bytes) {
  BufferRef buffer = BufferRef::allocate(bytes.size());
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return buffer;
}

}  // namespace

BufferRef encode_infer_response(const Request& request, std::size_t room, std::string& scratch,
                                std::vector<BodyPiece>& pieces) {
  const Response& response = request.response;
  pieces.clear();
  scratch.clear();
  scratch.resize(room);
  protozero::pbf_writer writer(scratch);
  add(writer, kModelName, response.model_name);
  add(writer, kModelVersion, response.model_version);
  if (!request.id.empty()) add(writer, kId, request.id);
  if (request.arm != nullptr) add_parameter(writer, "hr.arm", *request.arm);
  if (request.fallback_from != nullptr) {
    add_parameter(writer, "hr.fallback_from", *request.fallback_from);
  }
  add_policy_parameters(writer, request);
  for (const OutputTensor& output : response.outputs) {
    protozero::pbf_writer tensor(writer, kOutputs);
    add(tensor, kName, output.name);
    add(tensor, kDatatype, dtype_name(output.tensor.dtype));
    tensor.add_packed_int64(kShape, output.tensor.shape.begin(), output.tensor.shape.end());
  }
  // Everything up to the first large tensor is the head; each large tensor is a piece of its own,
  // followed by a piece with what stands between it and the next.
  BufferRef head;
  const auto cut = [&] {
    if (!head) {
      head = buffer_of(scratch);
    } else if (!scratch.empty()) {
      BufferRef between = buffer_of(scratch);
      const std::span<const std::byte> bytes = std::as_const(between).span();
      pieces.push_back({std::move(between), bytes});
    }
    scratch.clear();
  };
  for (const OutputTensor& output : response.outputs) {
    const std::span<const std::byte> data = output.tensor.data;
    if (data.size() < kByReferenceBytes) {
      writer.add_bytes(kRawOutputContents, reinterpret_cast<const char*>(data.data()), data.size());
      continue;
    }
    protozero::add_varint_to_buffer(&scratch, kRawOutputContents << 3 | 2);
    protozero::add_varint_to_buffer(&scratch, data.size());
    cut();
    pieces.push_back({output.owner, data});
  }
  cut();
  return head;
}

}  // namespace headrace
