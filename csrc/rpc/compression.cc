#include "rpc/compression.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

namespace headrace {

std::optional<Encoding> encoding_from_name(std::string_view name) {
  if (name == "identity") return Encoding::kIdentity;
  if (name == "gzip") return Encoding::kGzip;
  if (name == "deflate") return Encoding::kDeflate;
  return std::nullopt;
}

std::string_view name_of(Encoding encoding) {
  switch (encoding) {
    case Encoding::kIdentity:
      return "identity";
    case Encoding::kGzip:
      return "gzip";
    case Encoding::kDeflate:
      return "deflate";
  }
  return {};
}

bool accepts_encoding(std::string_view accepted, Encoding encoding) {
  if (encoding == Encoding::kIdentity) return true;
  const std::string_view name = name_of(encoding);
  while (!accepted.empty()) {
    const std::size_t comma = std::min(accepted.find(','), accepted.size());
    std::string_view item = accepted.substr(0, comma);
    accepted.remove_prefix(std::min(comma + 1, accepted.size()));
    while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
    while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
    if (item == name) return true;
  }
  return false;
}

std::optional<BufferRef> compress_message(Encoding encoding, std::span<const std::byte> first,
                                          std::span<const BodyPiece> rest, std::size_t room) {
  std::size_t size = first.size();
  for (const BodyPiece& piece : rest) size += piece.bytes.size();
  z_stream stream{};
  const int window = encoding == Encoding::kGzip ? MAX_WBITS + 16 : MAX_WBITS;
  constexpr int kMemoryLevel = 8;  // zlib's default
  if (size == 0 || deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, window, kMemoryLevel,
                                Z_DEFAULT_STRATEGY) != Z_OK) {
    return std::nullopt;
  }
  struct End {
    z_stream& s;
    ~End() { deflateEnd(&s); }
  } const end{stream};
  // Room for one byte less than the message: running out of it means that it does not pay.
  BufferRef out = BufferRef::allocate(room + size - 1);
  stream.next_out = reinterpret_cast<Bytef*>(out.data() + room);
  stream.avail_out = static_cast<uInt>(size - 1);
  const auto add = [&](std::span<const std::byte> bytes, bool last) {
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes.data()));
    stream.avail_in = static_cast<uInt>(bytes.size());
    const int rc = deflate(&stream, last ? Z_FINISH : Z_NO_FLUSH);
    return last ? rc == Z_STREAM_END : stream.avail_in == 0;
  };
  bool fits = rest.empty() ? add(first, true) : first.empty() || add(first, false);
  for (std::size_t i = 0; fits && i < rest.size(); ++i) {
    const bool last = i + 1 == rest.size();
    if (last || !rest[i].bytes.empty()) fits = add(rest[i].bytes, last);
  }
  if (!fits) return std::nullopt;
  out.shrink(room + size - 1 - stream.avail_out);
  return out;
}

Result<BufferRef> inflate_message(Encoding encoding, std::span<const std::byte> message,
                                  std::size_t limit,
                                  const std::function<bool(std::size_t)>& reserve) {
  z_stream stream{};
  // +16: gzip wrapper; otherwise zlib's own, which is what HTTP and gRPC call "deflate".
  const int window = encoding == Encoding::kGzip ? MAX_WBITS + 16 : MAX_WBITS;
  if (inflateInit2(&stream, window) != Z_OK) {
    return Status::resource_exhausted("cannot start decompressing the message");
  }
  struct End {
    z_stream& s;
    ~End() { inflateEnd(&s); }
  } const end{stream};

  // zlib counts in 32 bits; a message never exceeds 2^32 - 1 bytes (its length prefix).
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(message.data()));
  stream.avail_in = static_cast<uInt>(message.size());
  const std::size_t first = std::min<std::size_t>(
      limit, std::max<std::size_t>(1024, std::min<std::size_t>(message.size() * 4, 1 << 20)));
  if (!reserve(first)) return Status::resource_exhausted(std::string(kBudgetFull));
  BufferRef out = BufferRef::allocate(first);
  std::size_t used = 0;
  for (;;) {
    const std::size_t room = out.size() - used;
    stream.next_out = reinterpret_cast<Bytef*>(out.data() + used);
    stream.avail_out =
        static_cast<uInt>(std::min<std::size_t>(room, std::numeric_limits<uInt>::max()));
    const uInt offered = stream.avail_out;
    const int rc = inflate(&stream, Z_NO_FLUSH);
    used += offered - stream.avail_out;
    if (rc == Z_STREAM_END) break;
    if (rc != Z_OK && rc != Z_BUF_ERROR) {
      return Status::internal("the compressed message cannot be decompressed");
    }
    if (stream.avail_out != 0) {  // it wants more input, and there is none
      return Status::internal("the compressed message is truncated");
    }
    if (used == out.size()) {
      if (used >= limit) {
        // Full to the limit: one more byte tells whether the message ends here.
        Bytef extra = 0;
        stream.next_out = &extra;
        stream.avail_out = 1;
        const int last = inflate(&stream, Z_NO_FLUSH);
        if (last == Z_STREAM_END && stream.avail_out == 1) break;
        if (last != Z_OK && last != Z_STREAM_END && last != Z_BUF_ERROR) {
          return Status::internal("the compressed message cannot be decompressed");
        }
        if (stream.avail_out == 1) return Status::internal("the compressed message is truncated");
        return Status::resource_exhausted(
            "Received message larger than max: it inflates to more than " + std::to_string(limit) +
            " bytes");
      }
      const std::size_t size = out.size() > limit / 2 ? limit : out.size() * 2;
      if (!reserve(size - out.size())) return Status::resource_exhausted(std::string(kBudgetFull));
      BufferRef larger = BufferRef::allocate(size);
      std::memcpy(larger.data(), out.data(), used);
      out = std::move(larger);
    }
  }
  if (stream.avail_in != 0) {
    return Status::internal("the compressed message is followed by other bytes");
  }
  out.shrink(used);
  return out;
}

}  // namespace headrace
