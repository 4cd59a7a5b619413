// Call: one gRPC call on one HTTP/2 stream: checks the request headers, puts the messages together,
// keeps the deadline, and writes the answer. Handler is the door up: what answers a method.
//
// Threads: a Call belongs to its I/O thread, and a Handler is told everything there. Another thread that
// has an answer sends it to the loop with the call's id; CallSet::find() there tells whether the
// client still waits.
//
// When a handler has a call. Unary request (kUnary, kServerStreaming): from on_unary, with the whole
// message. Streamed request: from on_open, when the headers were accepted; then
//
//   on_open -> on_message* -> on_half_close       as far as it asked with request_messages(), in order
//           -> on_writable*                       each after a writable() that answered false
//
// and it ends with exactly one of
//
//   the handler's respond(), fail() or finish()   it hears nothing of the call any more; or
//   on_cancel                                     the client left, the deadline passed, the server stops, or
//                                                 the request is malformed: the client is told by rpc.
//
// never both, never neither; after it the id finds nothing. Any callback but on_cancel may end the call.
//
// The response is either one respond(), or [send_headers] send_message* finish.
//
// Back-pressure. A streamed request is taken from the client only as the handler asks for messages:
// without credit at most the stream's window of raw bytes is held; with credit also the one message that is
// being put together. All of it, and messages that were handed over until release(), is charged to the
// ReceiveBudget. Responses: see writable().
//
// Compressed messages are inflated on the I/O thread, small ones as they come. Larger ones wait in the
// CallSet's queue and are inflated one after the other, a slice a turn.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/counter.h"
#include "base/fifo.h"
#include "base/snapshot.h"
#include "base/status.h"
#include "base/timer_wheel.h"
#include "rpc/authorizer.h"
#include "rpc/compression.h"
#include "transport/event_loop.h"
#include "transport/stream.h"

namespace headrace {

class Call;
class CallSet;

enum class MethodKind : uint8_t { kUnary, kClientStreaming, kServerStreaming, kBidiStreaming };

constexpr bool request_streams(MethodKind kind) {
  return kind == MethodKind::kClientStreaming || kind == MethodKind::kBidiStreaming;
}

// A method's kind decides how requests come. How many messages the response has is the handler's affair:
// with one, respond() is the fast way.
class Handler {
 public:
  virtual ~Handler() = default;
  // kUnary, kServerStreaming: the whole, inflated request message. Answer now or later.
  virtual void on_unary(Call& call, BufferRef message);

  // kClientStreaming, kBidiStreaming: a new call. No message comes before call.request_messages().
  virtual void on_open(Call& call);
  // One inflated message; it takes one credit. Its size stays charged to the receive budget until
  // call.release().
  virtual void on_message(Call& call, BufferRef message);
  // The client has sent its last message, and all of them were delivered.
  virtual void on_half_close(Call& call);
  // call.writable() was false and is true.
  virtual void on_writable(Call& call);

  // The call ended without the handler (see above); the client is told. Stop working on it. The call may
  // be looked at, not answered.
  virtual void on_cancel(Call& call) = 0;
};

struct Method {
  Handler* handler = nullptr;
  std::size_t max_message_bytes = 4 << 20;  // as received, and inflated
  MethodKind kind = MethodKind::kUnary;
  Right right = Right::kNone;  // what its callers need; see authorizer.h
};

// By path, "/package.Service/Method". Filled before the loops run, then immutable.
class MethodTable {
 public:
  void add(std::string path, Method method) { methods_[std::move(path)] = method; }
  // What every other path finds, instead of nothing.
  void set_fallback(Method method) { fallback_ = method; }
  const Method* find(std::string_view path) const {
    const auto it = methods_.find(path);
    if (it != methods_.end()) return &it->second;
    return fallback_.handler == nullptr ? nullptr : &fallback_;
  }
  template <class Each>
  void for_each(Each&& each) const {
    for (const auto& [path, method] : methods_) each(path, method);
  }

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, Method, Hash, std::equal_to<>> methods_;
  Method fallback_;
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
  Counter quota_refused;  // calls, or requests of a stream
  std::array<Counter, 17> finished_by_code{};
};

using Metadata = std::vector<std::pair<std::string, std::string>>;

class Call final : public StreamHandler {
 public:
  // Every response message starts with room for the prefix (flag and length), which is filled in here.
  static constexpr std::size_t kPrefixBytes = 5;

  uint64_t id() const;
  std::string_view path() const { return path_; }
  const std::string& peer() const { return stream_->peer(); }
  // Who the client is (transport/auth_context.h); null without TLS. Lives as long as anyone keeps it.
  const std::shared_ptr<const AuthContext>& auth_context() const { return stream_->auth_context(); }
  // The caller, where an access policy knows it; null for anonymous ones and while the policy is open.
  const std::shared_ptr<const Principal>& principal() const { return principal_; }
  // Takes one from the caller's quota; not OK: it is used up. rpc itself does for every call that infers
  // or is an application's, but for ModelStreamInfer's, whose requests count one by one.
  Status take_quota();
  TimePoint deadline() const { return deadline_; }
  TimePoint now() const;
  // Request metadata as it came, without pseudo-headers and gRPC's own (`grpc-*`, te, content-type).
  Metadata metadata() const;
  // The first of these names; empty: none. As long as the call.
  std::string_view find_metadata(std::string_view name) const;

  // Ends the call OK with one message: `head` (which starts with kPrefixBytes of room) followed by
  // the pieces of `rest`, in order. Metadata is sent with the headers / trailers.
  void respond(BufferRef head, std::vector<BodyPiece>& rest, const Metadata* initial = nullptr,
               const Metadata* trailing = nullptr);
  // Ends it with an error and, if none was sent, no message.
  void fail(const Status& status, const Metadata* trailing = nullptr);

  // --- streamed responses ---
  // Once, before the first message; without it the first message or finish(OK) sends them.
  void send_headers(const Metadata* initial = nullptr);
  bool headers_sent() const { return headers_sent_; }
  // One message, as respond() takes it; `rest` is emptied. It is queued whatever writable() says. A message
  // too large for gRPC ends the call with on_cancel and INVALID_ARGUMENT: false.
  bool send_message(BufferRef head, std::vector<BodyPiece>& rest);
  // Whether to send more: false when as much as one client may make the server hold is queued (Http2Options).
  // After false, on_writable comes once the client has taken half of it.
  bool writable() { return stream_->writable(); }
  // Ends the call after the queued messages, with any status.
  void finish(const Status& status, const Metadata* trailing = nullptr);

  // --- streamed requests ---
  // Lets so many more messages come. They may come from within this call, but not from within on_message.
  void request_messages(std::size_t count);
  // The memory of a delivered message (its size) is free, or is held on another account: gives it back
  // to the receive budget. What was not released is when the call ends.
  void release(std::size_t bytes);

  // --- compression of the response (grpc/grpc doc/compression.md) ---
  // Before the headers; the default is CallSet::set_compression(). An encoding that the client does not
  // accept leaves it at identity: answers what will be used.
  Encoding set_compression(Encoding encoding);
  // Whether the messages from now on are compressed, if the call is. Message for message.
  void compress_messages(bool on) { compress_messages_ = on; }

  // The handler's own; null at first.
  void* context = nullptr;

  void on_header(std::string_view name, std::string_view value) override;
  void on_headers_end(bool too_large) override;
  void on_data(std::span<const std::byte> bytes) override;
  void on_end() override;
  void on_writable() override;
  bool awaits_body() const override;
  std::size_t whole_bytes() const override;
  void on_closed(Http2Error error) override;

 private:
  friend class CallSet;
  // Of a unary request: kReceiving, the handler has not got it; kWaiting, nor will it before the client
  // has taken other answers; kInflating, nor before it is inflated. kHandled: the handler has it.
  enum class State : uint8_t { kReceiving, kWaiting, kInflating, kHandled, kFinished };
  enum class Inflating : uint8_t { kMore, kDone, kParked, kEnded };
  struct Field {
    uint32_t name_size;
    uint32_t value_size;
  };

  void open(Stream& stream);
  // False: the call has been failed.
  bool authorize();
  bool begin_message();
  bool reserve(std::size_t bytes);
  bool streams() const { return request_streams(method_->kind); }
  // Takes what belongs to the current prefix or message from the front. False: the call was ended.
  bool parse(std::span<const std::byte>& bytes);
  bool message_complete() const { return have_message_ && received_ == message_size_; }
  // Gives the request, which is whole, to its handler.
  void begin();
  void give_back(std::size_t bytes);
  // Of inflated_, beside give_back().
  void give_back_inflated(std::size_t bytes);
  // The complete message, which is inflated: to the handler.
  void hand_over();
  // Makes message_ the inflated one. False: later, by CallSet, or the call was ended.
  bool inflate();
  // A piece of it. kParked: its connection holds too much. kEnded: the call was ended.
  Inflating inflate_piece();
  void inflated();
  // It waits no more.
  void unqueue();
  // CallSet inflated it: goes on with it.
  void resume();
  // Streamed requests: delivers from `bytes` what credit allows; answers how many it took.
  std::size_t deliver(std::span<const std::byte> bytes);
  void deliver_held();
  void hold(std::span<const std::byte> bytes);
  // Ends a call that rpc gives up, whether or not a handler has it.
  void abort(const Status& status);
  // abort() for a request that is no good; many of them end the connection.
  void reject(const Status& status);
  void on_deadline();
  // Writes the prefix and compresses. Not OK: the message is too large.
  Status pack(BufferRef& head, std::vector<BodyPiece>& rest) const;
  void queue(BufferRef head, std::vector<BodyPiece>& rest);
  void send_ok_trailers(const Metadata* trailing);
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
  bool headers_sent_ = false;
  bool compress_messages_ = true;
  Encoding encoding_ = Encoding::kIdentity;           // of the request
  Encoding response_encoding_ = Encoding::kIdentity;  // of the response
  std::string accept_encoding_;                       // grpc-accept-encoding, as it came
  TimePoint deadline_ = kNever;
  TimerWheel::Timer timer_;
  const Method* method_ = nullptr;
  std::shared_ptr<const Principal> principal_;

  std::array<std::byte, kPrefixBytes> prefix_{};
  std::size_t prefix_size_ = 0;
  bool have_message_ = false;
  bool compressed_ = false;
  BufferRef message_;
  std::size_t message_size_ = 0;  // declared
  std::size_t received_ = 0;
  std::size_t charged_ = 0;  // to the budget
  std::unique_ptr<Inflation> inflation_;
  bool inflation_queued_ = false;
  std::size_t inflated_ = 0;  // of charged_
  uint64_t glitches_ = 0;     // what the client is blamed for if the call fails

  // Streamed requests.
  std::size_t credit_ = 0;
  std::size_t delivered_ = 0;  // in messages that the handler has not released
  bool delivering_ = false;
  bool half_closed_ = false;     // END_STREAM came
  bool end_told_ = false;        // on_half_close was
  std::vector<std::byte> held_;  // from held_offset_ on: came without credit, not consumed
  std::size_t held_offset_ = 0;
};

// The calls of one event loop.
class CallSet final : public StreamAcceptor,
                      public EventLoop::TurnEnd,
                      public EventLoop::UntrustedWork {
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
  // Every call is checked against the newest policy. Without this, none is (tests). Before the loop runs.
  void set_access(const Snapshot<AccessPolicy>& policy) { access_.emplace(policy); }
  // Spreads the inflation of messages over this loop's turns; without it each is inflated when it is whole.
  // Before the loop runs.
  void spread_over(EventLoop& loop) { loop_ = &loop; }
  // How responses are compressed unless their call says otherwise. Before the loop runs.
  void set_compression(Encoding encoding) { compression_ = encoding; }

  const RpcCounters& counters() const { return counters_; }

  void on_turn_end() override;
  void on_untrusted_turn() override;

 private:
  friend class Call;
  void recycle(Call& call);
  // Whether so much may be inflated at once.
  bool inflates_now(std::size_t bytes);
  void inflate_later(Call& call);
  // What this connection sent is next: no better than what it sent before, that ends it the sooner.
  void inflate_next(const void* connection, Fifo<uint64_t>& queue);
  // Parked ones try again: a call has given memory back.
  void unpark();
  void request_turn(bool trusted);
  // A piece of the first of them. False: there is none.
  bool inflate_some(bool trusted);
  Call* find_any(uint64_t id);

  const MethodTable& methods_;
  ReceiveBudget& budget_;
  TimerWheel& timers_;
  const std::function<TimePoint()> now_;
  RpcCounters counters_;
  Status refuse_;
  Encoding compression_ = Encoding::kIdentity;
  std::optional<SnapshotReader<AccessPolicy>> access_;
  Counter active_;

  // What is to be inflated, by Call::id(): of trusted connections, and of others, [0], which share the
  // loop's untrusted turns.
  EventLoop* loop_ = nullptr;
  std::array<Fifo<uint64_t>, 2> inflating_;
  std::array<bool, 2> turn_requested_{};
  std::vector<uint64_t> parked_;
  TimePoint turn_;  // that inflated_in_turn_ counts
  std::size_t inflated_in_turn_ = 0;

  std::vector<std::unique_ptr<Call>> calls_;
  std::vector<uint32_t> free_;
};

}  // namespace headrace
