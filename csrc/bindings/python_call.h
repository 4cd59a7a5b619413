// PythonCall: one RPC that Python serves, shared by the I/O thread that owns the rpc Call and the Python
// threads that work on it. What Python says crosses to the loop as commands in the loop's CallOutbox;
// what the client says is kept here and told to a CallSink: the worker threads (PythonPool) or an
// asyncio loop (PythonEvents).
//
// Threads: I/O threads never wait for the GIL nor touch a Python object. Of PythonCall, what is marked so is
// the loop's; everything else is for any thread, with or without the GIL; only wait_*() wait, and are
// called without it.
// Invariants: a call ends once, by Python's finish() or by on_cancel, whichever the loop sees first. A call that
// Python forgets (its last PythonCallHandle goes) is answered INTERNAL.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/fifo.h"
#include "rpc/call.h"
#include "transport/auth_context.h"
#include "transport/event_loop.h"

namespace headrace {

class CallOutbox;
class PythonCall;
class PythonPool;
using PythonCallRef = std::shared_ptr<PythonCall>;

enum class CallEvent : uint8_t {
  kReady,     // a new call; a unary request is there
  kReadable,  // asked for by read_or_notify()
  kWritable,  // asked for by writable_or_notify()
  kEnded,     // asked for by notify_end()
};

class CallSink {
 public:
  virtual ~CallSink() = default;
  // Any thread. False: it is full (kReady only) or has stopped; nothing was taken.
  virtual bool push(CallEvent event, PythonCallRef call) = 0;
};

// The calls that Python works on, against the limit of a server.
struct CallLimit {
  const std::size_t most;  // 0: none
  std::atomic<std::size_t> active{0};
};

// A method that Python serves. Made before the server starts; outlives every call of it.
struct PythonMethod {
  // run(message, call): `message` is None when requests stream. Answers the response's bytes, which ends the
  // call OK; or None when it has ended the call or will. A raised exception ends it with its status.
  pybind11::object run;
  // ended(call_id), for calls that asked to be told.
  pybind11::object ended;
  MethodKind kind = MethodKind::kUnary;
  bool blocking = false;                    // its handlers may wait
  bool tell_cancel = false;                 // kEnded comes unasked for calls that are cancelled
  Encoding encoding = Encoding::kIdentity;  // of responses, unless the call says otherwise
  CallSink* calls = nullptr;
  CallSink* endings = nullptr;
  CallLimit* limit = nullptr;
  // PythonPool's: how often its handlers took long, lately.
  std::atomic<int> slowness{0};
};

// From grpc.Compression's value: 0, 1 (deflate) or 2 (gzip). Throws py::value_error.
Encoding compression_encoding(int compression);

struct CallCommand {
  enum class Kind : uint8_t { kHeaders, kMessage, kRespond, kFinish, kRead };
  Kind kind = Kind::kRead;
  bool compress = true;              // kMessage, kRespond
  std::optional<Encoding> encoding;  // of the response; before the headers
  PythonCallRef call;
  BufferRef message;                   // kMessage, kRespond: with Call::kPrefixBytes of room
  Status status;                       // kFinish
  std::unique_ptr<Metadata> metadata;  // initial of kHeaders, trailing of kRespond and kFinish
  std::size_t count = 0;               // kRead: messages
  std::size_t bytes = 0;               // kRead: of messages that Python has copied
};

// Commands on their way to one I/O loop.
class CallOutbox final : public EventLoop::Inbox {
 public:
  CallOutbox(EventLoop& loop, CallSet& calls, PythonPool* pool);
  ~CallOutbox() override;

  // Any thread. A worker that still has calls to run wakes the loop after them, or the loop's tick does.
  void push(CallCommand command);
  void wake();
  // The loop has ended: commands are dropped from now on.
  void close();

  // The loop's thread.
  void on_wake() override;
  // Looks after the pool every millisecond while it works: a stuck worker is replaced, and what it has
  // pushed and not woken for is taken.
  void tick_while_busy();
  CallSet& calls() { return calls_; }

 private:
  void execute(CallCommand& command);

  EventLoop& loop_;
  CallSet& calls_;
  PythonPool* const pool_;
  TimerWheel::Timer tick_;
  uint64_t seen_ = 0;  // PythonPool::tick()'s
  std::vector<CallCommand> taken_;
  std::vector<BodyPiece> rest_;  // always empty

  std::mutex mutex_;
  std::vector<CallCommand> commands_;  // guarded by mutex_
  bool closed_ = false;                // guarded by mutex_
};

class PythonCall final : public std::enable_shared_from_this<PythonCall> {
 public:
  PythonCall(PythonMethod& method, std::shared_ptr<CallOutbox> outbox, Call& call);
  ~PythonCall();

  PythonMethod&
      method;  // gone when the server is: of its calls only handles are left then, all ended
  const MethodKind kind;
  const uint64_t id;  // unique in this process
  const uint64_t rpc_id;
  const std::string path;
  const std::string peer;
  const std::string principal;  // empty: not known
  const Metadata metadata;
  const TimePoint deadline;
  const std::shared_ptr<const AuthContext> auth;  // null without TLS
  const std::shared_ptr<CallOutbox> outbox;

  // --- requests ---
  enum class Read : uint8_t { kMessage, kEnd, kNothingYet };
  // kEnd: the client has half-closed, or the call has ended.
  Read read(BufferRef& message);
  // The same; after kNothingYet, one kReadable event comes.
  Read read_or_notify(BufferRef& message);
  void wait_readable();

  // --- responses: false when the call has ended. ---
  bool send_headers(std::unique_ptr<Metadata> initial, std::optional<Encoding> encoding);
  // `message` has Call::kPrefixBytes of room.
  bool send(BufferRef message, bool compress, std::optional<Encoding> encoding);
  // OK with one message.
  bool respond(BufferRef message, bool compress, std::optional<Encoding> encoding,
               std::unique_ptr<Metadata> trailing);
  bool finish(Status status, std::unique_ptr<Metadata> trailing, std::optional<Encoding> encoding);
  // As if the client had cancelled.
  void cancel();

  // Whether less is queued than a slow client may make the server hold. True when the call has ended.
  bool writable();
  // The same; after false, one kWritable event comes.
  bool writable_or_notify();
  void wait_writable();

  // --- its end ---
  bool active();     // neither finished by Python nor cancelled
  bool cancelled();  // ended by the client, the deadline or the server
  // Asks for kEnded, once. False: it has ended.
  bool notify_end();

  // --- the loop's thread ---
  void keep() { self_ = shared_from_this(); }
  void on_message(BufferRef message);
  void on_half_close();
  void on_sent(std::size_t bytes, bool stream_full);
  void on_writable();
  void on_ended(bool cancelled);

 private:
  // With mutex_.
  Read take(BufferRef& message, CallCommand& more);
  bool roomy() const;
  bool over() const { return cancelled_ || finished_; }
  void wake_reader(std::unique_lock<std::mutex>& lock);

  PythonCallRef self_;  // the loop's hold until the call ends

  std::mutex mutex_;
  std::condition_variable changed_;
  Fifo<BufferRef> messages_;
  std::size_t credit_ = 1;  // messages that may still come unasked
  std::size_t unsent_ = 0;  // bytes on their way to the loop
  bool half_closed_ = false;
  bool stream_full_ = false;
  bool finished_ = false;  // by Python
  bool cancelled_ = false;
  bool ended_ = false;  // as the loop saw it
  bool tell_end_ = false;
  bool tell_readable_ = false;
  bool tell_writable_ = false;
};

// Python's hold on a call, and what Python has said of its answer so far. The last one to go answers a call that was forgotten.
class PythonCallHandle {
 public:
  explicit PythonCallHandle(PythonCallRef call) : call_(std::move(call)) {}
  ~PythonCallHandle();
  PythonCallHandle(const PythonCallHandle&) = delete;
  PythonCallHandle& operator=(const PythonCallHandle&) = delete;
  PythonCall* operator->() const { return call_.get(); }

  // What the answer will carry. With the GIL.
  std::unique_ptr<Metadata> trailing;
  std::optional<Encoding> encoding;
  bool compress_next = true;

 private:
  const PythonCallRef call_;
};

// Hands the calls of one method on one loop to its sink.
class PythonHandler final : public Handler {
 public:
  PythonHandler(PythonMethod& method, std::shared_ptr<CallOutbox> outbox)
      : method_(method), outbox_(std::move(outbox)) {}
  void on_unary(Call& call, BufferRef message) override;
  void on_open(Call& call) override;
  void on_message(Call& call, BufferRef message) override;
  void on_half_close(Call& call) override;
  void on_writable(Call& call) override;
  void on_cancel(Call& call) override;

 private:
  // Null: the call has been failed.
  PythonCallRef accept(Call& call);
  void submit(PythonCallRef call);

  PythonMethod& method_;
  const std::shared_ptr<CallOutbox> outbox_;
};

}  // namespace headrace
