#include "rpc/compression.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
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

// What a message is inflated with. Its window and the scratch make it some 100 KiB.
struct Inflation::State {
  z_stream stream{};
  std::unique_ptr<std::byte[]> scratch;  // while measuring: the last piece

  ~State() { inflateEnd(&stream); }
};

Inflation::Inflation(Encoding encoding, std::span<const std::byte> message, std::size_t limit,
                     bool believed)
    : encoding_(encoding), message_(message), limit_(limit) {
  // RFC 1952: the size modulo 2^32 is the last field of the one member that a message has.
  constexpr std::size_t kLeastGzip = 18;
  if (encoding != Encoding::kGzip || message.size() < kLeastGzip) return;
  const std::byte* last = message.data() + message.size() - 4;
  for (std::size_t i = 4; i-- > 0;) size_ = size_ << 8 | static_cast<std::size_t>(last[i]);
  over_limit_ = size_ > limit;
  if (!over_limit_ && !believed && size_ > kBelieved) claimed_ = size_;
  measured_ = !over_limit_ && claimed_ == 0;
}

Inflation::~Inflation() = default;

void Inflation::rest() {
  state_.reset();
  used_ = 0;
}

void Inflation::allocate() {
  // Larger ones are rare, and would stay with the allocator.
  constexpr std::size_t kMappedBytes = std::size_t{4} << 20;
  out_ = size_ < kMappedBytes ? BufferRef::allocate(size_) : BufferRef::map(size_);
  if (state_ && state_->scratch) {
    // All of it was in the piece that measured it.
    std::memcpy(out_.data(), state_->scratch.get(), size_);
    done_ = true;
    state_.reset();
  }
}

Status Inflation::inflate_piece(std::size_t room, std::byte* to, bool& ended) {
  z_stream& stream = state_->stream;
  Bytef extra = 0;  // with no room, one byte tells whether the message ends here
  stream.next_out = room == 0 ? &extra : reinterpret_cast<Bytef*>(to);
  stream.avail_out = room == 0 ? 1 : static_cast<uInt>(std::min(room, kPieceBytes));
  const uInt offered = stream.avail_out;
  const int rc = inflate(&stream, Z_NO_FLUSH);
  const std::size_t made = offered - stream.avail_out;
  used_ += made;
  work_ += made;
  ended = rc == Z_STREAM_END;
  // With no room, more than gzip had said.
  if ((rc != Z_OK && rc != Z_BUF_ERROR && !ended) || (room == 0 && made != 0)) {
    return Status::internal("the compressed message cannot be decompressed");
  }
  if (ended && stream.avail_in != 0) {
    return Status::internal("the compressed message is followed by other bytes");
  }
  // It wants more input, and there is none.
  if (!ended && stream.avail_out != 0) {
    return Status::internal("the compressed message is truncated");
  }
  return {};
}

Status Inflation::run() {
  if (!state_) {
    state_ = std::make_unique<State>();
    // zlib counts in 32 bits; a message never exceeds 2^32 - 1 bytes (its length prefix).
    state_->stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(message_.data()));
    state_->stream.avail_in = static_cast<uInt>(message_.size());
    // +16: gzip wrapper; otherwise zlib's own, which is what HTTP and gRPC call "deflate".
    const int window = encoding_ == Encoding::kGzip ? MAX_WBITS + 16 : MAX_WBITS;
    if (inflateInit2(&state_->stream, window) != Z_OK) {
      return Status::resource_exhausted("cannot start decompressing the message");
    }
  }
  bool ended = false;
  if (measured_) {
    Status status = inflate_piece(size_ - used_, out_.data() + used_, ended);
    if (!status.ok() || !ended) return status;
    if (used_ != size_) return Status::internal("the compressed message cannot be decompressed");
    done_ = true;
    state_.reset();
    return {};
  }
  if (!state_->scratch) state_->scratch.reset(new std::byte[kPieceBytes]);
  Status status = inflate_piece(kPieceBytes, state_->scratch.get(), ended);
  if (!status.ok()) return status;
  if (claimed_ != 0 && used_ > claimed_) {
    return Status::internal("the compressed message cannot be decompressed");
  }
  // The first piece tells whether it is of the encoding at all; then its size is believed.
  if (used_ > limit_ || (over_limit_ && !ended)) {
    return Status::resource_exhausted(
        "Received message larger than max: it inflates to more than " + std::to_string(limit_) +
        " bytes");
  }
  if (!ended) return {};
  // gzip that had said otherwise never ends well: zlib compares.
  measured_ = true;
  size_ = used_;
  if (size_ > kPieceBytes) rest();
  return {};
}

Result<BufferRef> inflate_message(Encoding encoding, std::span<const std::byte> message,
                                  std::size_t limit,
                                  const std::function<bool(std::size_t)>& reserve) {
  Inflation inflation(encoding, message, limit);
  while (!inflation.done()) {
    if (inflation.measured() && !inflation.allocated()) {
      if (!reserve(inflation.size())) return Status::resource_exhausted(std::string(kBudgetFull));
      inflation.allocate();
      continue;
    }
    const Status status = inflation.run();
    if (!status.ok()) return status;
  }
  return inflation.take();
}

}  // namespace headrace
