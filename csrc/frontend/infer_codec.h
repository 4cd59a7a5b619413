// ModelInfer's messages (KServe v2 with Triton's extensions): protobuf bytes <-> Request. Tensor data
// are views into the message wherever the wire form allows it; only typed contents that are no
// contiguous little-endian array (varints, BYTES) are converted.
//
// Pure functions of bytes; any thread.
#pragma once

#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/status.h"
#include "core/request.h"
#include "transport/stream.h"

namespace headrace {

// Fills `request` from `message` and keeps it. What protobuf parses is parsed, but for groups (which no
// proto3 sender writes). Errors: INTERNAL when the bytes are no
// ModelInferRequest; INVALID_ARGUMENT / UNIMPLEMENTED with Triton's texts when they are one that no
// model could serve. What depends on the model is checked in serving.
Status decode_infer_request(BufferRef message, Request& request);

// `head` starts with `room` unset bytes; the message is `head` after those, then the pieces.
// `scratch` is reused from call to call.
BufferRef encode_infer_response(const Request& request, std::size_t room, std::string& scratch,
                                std::vector<BodyPiece>& pieces);

// Whether the bytes are valid UTF-8, which protobuf requires of `string` fields.
bool valid_utf8(std::string_view text);

}  // namespace headrace
