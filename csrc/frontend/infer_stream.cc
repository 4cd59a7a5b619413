#include "frontend/infer_stream.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <protozero/pbf_writer.hpp>
#include <utility>

#include "frontend/infer_codec.h"

namespace headrace {
namespace {

// ModelStreamInferResponse (proto/headrace/kserve.proto).
constexpr protozero::pbf_tag_type kErrorMessage = 1;
constexpr protozero::pbf_tag_type kInferResponse = 2;
// ModelInferResponse.
constexpr protozero::pbf_tag_type kId = 3;

// ModelInferResponse.parameters["triton_final_response"].bool_param = true. Our models answer each request
// once, so each answer is its last.
constexpr std::string_view kFinalResponse("\x22\x1b\x0a\x15triton_final_response\x12\x02\x08\x01",
                                          29);

BufferRef buffer_of(std::string_view bytes) {
  BufferRef buffer = BufferRef::allocate(bytes.size());
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return buffer;
}

// A `string` field must be UTF-8, or the client cannot parse the message; backends say what they like.
std::string error_text(const Status& status) {
  std::string text =
      status.message().empty() ? "the request failed" : std::string(status.message());
  if (!valid_utf8(text)) {
    std::replace_if(
        text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; }, '?');
  }
  return text;
}

}  // namespace

void KServeService::InferStreamHandler::on_open(Call& call) {
  auto stream = std::make_unique<InferStream>();
  for (const auto& [name, value] : call.metadata()) {
    if (name == "triton_grpc_error") stream->errors_end_it = value == "true";
  }
  call.context = stream.release();
  ++service_.open_streams_;
  // The client learns at once that the stream stands; some wait for it.
  call.send_headers();
  call.request_messages(kMaxInFlight);
}

void KServeService::InferStreamHandler::on_message(Call& call, BufferRef message) {
  auto& stream = *static_cast<InferStream*>(call.context);
  RequestPtr request = service_.make_request(call);
  Slot& slot = stream.slots.emplace_back();
  slot.running = request.get();
  slot.bytes = message.size();
  request->call = &slot;
  // It may be answered in here.
  Status status = service_.submit(call, request, std::move(message), call.take_quota());
  if (status.ok()) return;
  // As a gRPC library ends a stream whose message it cannot parse.
  stream.slots.pop_back();
  end(call);
  call.fail(status);
  answer(std::move(request), std::move(status));  // finds no call
}

void KServeService::InferStreamHandler::answered(Call& call, RequestPtr request) {
  auto& slot = *static_cast<Slot*>(request->call);
  slot.running = nullptr;
  slot.answered = std::move(request);
  const auto& stream = *static_cast<InferStream*>(call.context);
  if (&slot == &stream.slots.front()) send_ready(call);
}

void KServeService::InferStreamHandler::send_ready(Call& call) {
  auto& stream = *static_cast<InferStream*>(call.context);
  std::size_t sent = 0;
  while (!stream.slots.empty() && stream.slots.front().answered && call.writable()) {
    const Slot slot = std::move(stream.slots.front());
    stream.slots.pop_front();
    if (!send_answer(call, *slot.answered)) return;
    call.release(slot.bytes);
    ++sent;
  }
  if (stream.half_closed && stream.slots.empty()) {
    end(call);
    return call.finish(Status());
  }
  // Last: it may bring messages, whose answers come through here again.
  if (sent != 0) call.request_messages(sent);
}

bool KServeService::InferStreamHandler::send_answer(Call& call, const Request& request) {
  const Status& status = request.response.status;
  scratch_.assign(Call::kPrefixBytes, '\0');
  pieces_.clear();
  if (!status.ok()) {
    const auto& stream = *static_cast<InferStream*>(call.context);
    if (stream.errors_end_it) {
      end(call);
      call.fail(status);
      return false;
    }
    protozero::pbf_writer writer(scratch_);
    writer.add_string(kErrorMessage, error_text(status));
    protozero::pbf_writer response(writer, kInferResponse);
    if (!request.id.empty()) response.add_bytes(kId, request.id.data(), request.id.size());
  } else {
    std::vector<BodyPiece>& rest = service_.pieces_;
    BufferRef inner = encode_infer_response(request, 0, service_.scratch_, rest);
    std::size_t size = kFinalResponse.size() + inner.size();
    for (const BodyPiece& piece : rest) size += piece.bytes.size();
    protozero::add_varint_to_buffer(&scratch_, kInferResponse << 3 | 2);
    protozero::add_varint_to_buffer(&scratch_, size);
    scratch_.append(kFinalResponse);
    const std::span<const std::byte> bytes = std::as_const(inner).span();
    pieces_.push_back({std::move(inner), bytes});
    std::move(rest.begin(), rest.end(), std::back_inserter(pieces_));
    rest.clear();
  }
  return call.send_message(buffer_of(scratch_), pieces_);  // false: on_cancel was called
}

void KServeService::InferStreamHandler::on_half_close(Call& call) {
  static_cast<InferStream*>(call.context)->half_closed = true;
  send_ready(call);
}

void KServeService::InferStreamHandler::on_writable(Call& call) { send_ready(call); }

void KServeService::InferStreamHandler::on_cancel(Call& call) { end(call); }

void KServeService::InferStreamHandler::end(Call& call) {
  const std::unique_ptr<InferStream> stream(static_cast<InferStream*>(call.context));
  call.context = nullptr;
  --service_.open_streams_;
  for (const Slot& slot : stream->slots) {
    if (slot.running != nullptr) slot.running->cancel();
  }
}

}  // namespace headrace
