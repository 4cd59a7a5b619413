// Message compression (grpc/grpc doc/compression.md): gzip and deflate (RFC 1950) of messages, both ways.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include "base/buffer.h"
#include "base/status.h"
#include "transport/stream.h"

namespace headrace {

enum class Encoding : uint8_t { kIdentity, kGzip, kDeflate };

// What we accept, as the grpc-accept-encoding value.
inline constexpr std::string_view kAcceptEncoding = "identity,gzip,deflate";

std::optional<Encoding> encoding_from_name(std::string_view name);
std::string_view name_of(Encoding encoding);
// Whether `encoding` is in a client's grpc-accept-encoding ("identity, gzip"); identity always is.
bool accepts_encoding(std::string_view accepted, Encoding encoding);

inline constexpr std::string_view kBudgetFull =
    "the server holds as many request bytes as it may; try again";

// Inflates a whole message. `limit` bounds the result: memory grows with what is really inflated,
// so a small message cannot claim much. `reserve(more)` is asked before each growth; false refuses
// it. What it granted stays granted, whatever comes back. Errors: RESOURCE_EXHAUSTED past the limit or when
// refused, INTERNAL when the bytes are not of that encoding or end early.
Result<BufferRef> inflate_message(Encoding encoding, std::span<const std::byte> message,
                                  std::size_t limit,
                                  const std::function<bool(std::size_t)>& reserve);

// Compresses `first` followed by `rest`. The result starts with `room` unset bytes. nullopt when it would
// not be smaller than the message: then that is sent as it is. The fastest level: it runs on I/O
// threads, and for tensors the slower ones gain little.
std::optional<BufferRef> compress_message(Encoding encoding, std::span<const std::byte> first,
                                          std::span<const BodyPiece> rest, std::size_t room);

}  // namespace headrace
