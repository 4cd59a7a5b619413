// Call: one gRPC call on one HTTP/2 stream: checks the request headers, puts the message together,
// keeps the deadline, and writes the answer. Handler is the door up: what answers a method.
//
// Threads: a Call belongs to its I/O thread. Another thread that has its answer sends it to the
// loop with the call's id; CallSet::find() there tells whether the client still waits.
// Invariants: a handler that was given a call gets either to finish it, or on_cancel; never both, never
// neither. After finish() the id finds nothing.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/counter.h"
#include "base/status.h"
#include "base/timer_wheel.h"
#include "rpc/compression.h"
#include "transport/stream.h"

namespace headrace {

class Call;
class CallSet;

class Handler {
 public:
  virtual ~Handler() = default;
  // The whole, inflated request message of a unary call. Answer with call.respond() or call.fail(),
  // now or later.
  virtual void on_unary(Call& call, BufferRef message) = 0;
  // The client left or the deadline passed; the client has been told. Stop working on it.
  virtual void on_cancel(Call& call) = 0;
};

struct Method {
  Handler* handler = nullptr;
  std::size_t max_message_bytes = 4 << 20;
};

// By path, "/package.Service/Method". Filled before the loops run, then immutable.
class MethodTable {
 public:
  void add(std::string path, Method method) { methods_[std::move(path)] = method; }
  const Method* find(std::string_view path) const {
    const auto it = methods_.find(path);
    return it == methods_.end() ? nullptr : &it->second;
  }

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, Method, Hash, std::equal_to<>> methods_;
};

// Bytes of messages that were received and not yet answered, over all loops.
class ReceiveBudget {
 public:
  explicit ReceiveBudget(std::size_t limit) : limit_(limit) {}
  bool take(std::size_t bytes) {
    if (used_.fetch_add(bytes, std::memory_order_relaxed) + bytes <= limit_) return true;
    give(bytes);
    return false;
  }
  void give(std::size_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }
  std::size_t used() const { return used_.load(std::memory_order_relaxed); }

 private:
  const std::size_t limit_;
  std::atomic<std::size_t> used_{0};
};

struct RpcCounters {
  Counter started;
  Counter finished;
  std::array<Counter, 17> finished_by_code{};
};

using Metadata = std::vector<std::pair<std::string, std::string>>;

class Call final : public StreamHandler {
 public:
  // Every response message starts with room for the prefix (flag and length), which respond() fills in.
  static constexpr std::size_t kPrefixBytes = 5;

  uint64_t id() const;
  std::string_view path() const { return path_; }
  const std::string& peer() const { return stream_->peer(); }
  TimePoint deadline() const { return deadline_; }
  TimePoint now() const;
  // Request metadata as it came, without pseudo-headers and gRPC's own (`grpc-*`, te, content-type).
  Metadata metadata() const;

  // Ends the call OK with one message: `head` (which starts with kPrefixBytes of room) followed by
  // the pieces of `rest`, in order. Metadata is sent with the headers / trailers.
  void respond(BufferRef head, std::vector<BodyPiece>& rest, const Metadata* initial = nullptr,
               const Metadata* trailing = nullptr);
  // Ends it with an error and no message.
  void fail(const Status& status, const Metadata* trailing = nullptr);

  // The handler's own; null at first.
  void* context = nullptr;

  void on_header(std::string_view name, std::string_view value) override;
  void on_headers_end(bool too_large) override;
  void on_data(std::span<const std::byte> bytes) override;
  void on_end() override;
  void on_closed(Http2Error error) override;

 private:
  friend class CallSet;
  enum class State : uint8_t { kReceiving, kHandled, kFinished };
  struct Field {
    uint32_t name_size;
    uint32_t value_size;
  };

  void open(Stream& stream);
  // False: the call has been failed.
  bool begin_message();
  bool reserve(std::size_t bytes);
  void dispatch();
  void on_deadline();
  void finished(StatusCode code);

  CallSet* set_ = nullptr;
  Stream* stream_ = nullptr;
  uint32_t index_ = 0;
  uint32_t generation_ = 1;
  State state_ = State::kFinished;

  std::string path_;
  std::string text_;           // names and values of the fields, end to end
  std::vector<Field> fields_;  // other request headers, in order
  bool post_ = false;
  bool content_type_ok_ = false;
  bool bad_timeout_ = false;
  bool bad_encoding_ = false;
  Encoding encoding_ = Encoding::kIdentity;
  TimePoint deadline_ = kNever;
  TimerWheel::Timer timer_;
  const Method* method_ = nullptr;

  std::array<std::byte, kPrefixBytes> prefix_{};
  std::size_t prefix_size_ = 0;
  bool have_message_ = false;
  bool compressed_ = false;
  BufferRef message_;
  std::size_t message_size_ = 0;  // declared
  std::size_t received_ = 0;
  std::size_t charged_ = 0;  // to the budget
};

// The calls of one event loop.
class CallSet final : public StreamAcceptor {
 public:
  // `now` is the loop's clock, read once a turn.
  CallSet(const MethodTable& methods, ReceiveBudget& budget, TimerWheel& timers,
          std::function<TimePoint()> now);
  ~CallSet() override;

  StreamHandler* open(Stream& stream) override;
  // The call, if its handler has not finished it and the client still waits.
  Call* find(uint64_t id);

  // Open and not finished. Any thread.
  std::size_t active() const { return active_.read(); }
  // Ends every call that a handler still works on.
  void fail_all(const Status& status);
  // From now on new calls are answered with this (shutdown).
  void refuse_new(Status status) { refuse_ = std::move(status); }

  const RpcCounters& counters() const { return counters_; }

 private:
  friend class Call;
  void recycle(Call& call);

  const MethodTable& methods_;
  ReceiveBudget& budget_;
  TimerWheel& timers_;
  const std::function<TimePoint()> now_;
  RpcCounters counters_;
  Status refuse_;
  Counter active_;
  std::vector<std::unique_ptr<Call>> calls_;
  std::vector<uint32_t> free_;
};

}  // namespace headrace
