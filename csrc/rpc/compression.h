// Message compression (grpc/grpc doc/compression.md): gzip and deflate (RFC 1950) of messages, both ways.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

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

// Inflates one message a piece at a time. Memory for the result is taken when its size is known, in one
// block: gzip says it in its last bytes, which nothing is believed beyond; other encodings are gone
// through once to measure them, and then again if they were larger than a piece.
//
//   Inflation inflation(encoding, message, limit);   // `message` must outlive it
//   while (!inflation.done()) {
//     if (inflation.measured() && !inflation.allocated()) inflation.allocate();
//     if (Status status = inflation.run(); !status.ok()) return status;
//   }
//   BufferRef result = inflation.take();
class Inflation {
 public:
  // Of result, a run(): some 0.1 ms.
  static constexpr std::size_t kPieceBytes = 64 * 1024;

  // What gzip's own word is taken for at once, of whom not `believed`: larger messages are gone through
  // first, too, so that a lie never has memory.
  static constexpr std::size_t kBelieved = std::size_t{8} << 20;

  Inflation(Encoding encoding, std::span<const std::byte> message, std::size_t limit,
            bool believed = true);
  ~Inflation();
  Inflation(const Inflation&) = delete;
  Inflation& operator=(const Inflation&) = delete;

  bool measured() const { return measured_; }
  // Of the result, when measured.
  std::size_t size() const { return size_; }
  bool allocated() const { return static_cast<bool>(out_); }
  void allocate();
  // A piece more. Errors: RESOURCE_EXHAUSTED past the limit, INTERNAL when the bytes are not of that
  // encoding or end early.
  Status run();
  bool done() const { return done_; }
  BufferRef take() { return std::move(out_); }
  // Bytes of result that were made so far, measuring included: what it cost.
  std::size_t work() const { return work_; }
  // Gives back what it needs besides message and result. Only before allocate(): it begins anew, with the
  // size that it knows.
  void rest();

 private:
  struct State;
  Status inflate_piece(std::size_t room, std::byte* to, bool& ended);

  const Encoding encoding_;
  const std::span<const std::byte> message_;
  const std::size_t limit_;
  std::unique_ptr<State> state_;  // zlib's; null: not begun
  bool measured_ = false;
  bool over_limit_ = false;
  bool done_ = false;
  std::size_t size_ = 0;
  std::size_t claimed_ = 0;  // what gzip says, while it is not believed
  std::size_t used_ = 0;
  std::size_t work_ = 0;
  BufferRef out_;
};

// Inflates a whole message at once. `reserve(bytes)` is asked before memory is taken; false refuses it:
// RESOURCE_EXHAUSTED. Other errors as Inflation::run().
Result<BufferRef> inflate_message(Encoding encoding, std::span<const std::byte> message,
                                  std::size_t limit,
                                  const std::function<bool(std::size_t)>& reserve);

// Compresses `first` followed by `rest`. The result starts with `room` unset bytes. nullopt when it would
// not be smaller than the message: then that is sent as it is. The fastest level: it runs on I/O
// threads, and for tensors the slower ones gain little.
std::optional<BufferRef> compress_message(Encoding encoding, std::span<const std::byte> first,
                                          std::span<const BodyPiece> rest, std::size_t room);

}  // namespace headrace
