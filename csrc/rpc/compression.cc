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
