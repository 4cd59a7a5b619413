#include "bindings/python_call.h"

#include <utility>

#include "bindings/python_pool.h"

namespace headrace {
namespace {

// Requests that may wait for Python: several when they are small, else the next one.
constexpr std::size_t kReadAhead = 8;
constexpr std::size_t kSmallMessage = 16 * 1024;
// Bytes of responses between Python and the loop; what the stream may hold comes on top (Call::writable).
constexpr std::size_t kWriteAhead = 256 * 1024;

std::atomic<uint64_t> next_id{1};

}  // namespace

// --- the outbox ------------------------------------------------------------------------------

CallOutbox::CallOutbox(EventLoop& loop, CallSet& calls, PythonPool* pool)
    : loop_(loop), calls_(calls), pool_(pool) {
  tick_.owner = this;
  tick_.on_fire = [](TimerWheel::Timer& timer) {
    auto* self = static_cast<CallOutbox*>(timer.owner);
    const bool busy = self->pool_->tick(self->seen_);
    self->on_wake();  // after it: a worker that no longer leads wakes the loop itself
    if (busy) self->tick_while_busy();
  };
  loop_.add_inbox(*this);
}

CallOutbox::~CallOutbox() = default;

void CallOutbox::push(CallCommand command) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    commands_.push_back(std::move(command));
    if (!PythonPool::defer_wake(*this)) loop_.wake();
  }
}

void CallOutbox::wake() {
  const std::lock_guard lock(mutex_);
  if (!closed_) loop_.wake();
}

void CallOutbox::close() {
  std::vector<CallCommand> dropped;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    dropped.swap(commands_);
  }
  loop_.timers().cancel(tick_);
}

void CallOutbox::on_wake() {
  {
    const std::lock_guard lock(mutex_);
    if (commands_.empty()) return;
    taken_.swap(commands_);
  }
  for (CallCommand& command : taken_) execute(command);
  taken_.clear();
}

void CallOutbox::tick_while_busy() {
  if (pool_ != nullptr && !tick_.scheduled()) {
    loop_.timers().schedule(tick_, loop_.now() + TimerWheel::kTick);
  }
}

void CallOutbox::execute(CallCommand& command) {
  PythonCall& python = *command.call;
  Call* call = calls_.find(python.rpc_id);
  if (call == nullptr) return;  // the client is gone; on_cancel told Python
  if (command.encoding && !call->headers_sent()) call->set_compression(*command.encoding);
  using Kind = CallCommand::Kind;
  switch (command.kind) {
    case Kind::kHeaders:
      if (!call->headers_sent()) call->send_headers(command.metadata.get());
      return;
    case Kind::kMessage: {
      const std::size_t bytes = command.message.size();
      call->compress_messages(command.compress);
      if (!call->send_message(std::move(command.message), rest_)) return;
      python.on_sent(bytes, !call->writable());
      return;
    }
    case Kind::kRespond:
      call->compress_messages(command.compress);
      if (call->headers_sent()) {
        if (!call->send_message(std::move(command.message), rest_)) return;
        call->finish(Status(), command.metadata.get());
      } else {
        call->respond(std::move(command.message), rest_, nullptr, command.metadata.get());
      }
      return python.on_ended(false);
    case Kind::kFinish:
      call->finish(command.status, command.metadata.get());
      return python.on_ended(false);
    case Kind::kRead:
      call->release(command.bytes);
      if (command.count != 0) call->request_messages(command.count);
      return;
  }
}

// --- the call --------------------------------------------------------------------------------

PythonCall::PythonCall(PythonMethod& python_method, std::shared_ptr<CallOutbox> box, Call& call)
    : method(python_method),
      kind(python_method.kind),
      id(next_id.fetch_add(1, std::memory_order_relaxed)),
      rpc_id(call.id()),
      path(call.path()),
      peer(call.peer()),
      principal(call.principal() ? call.principal()->name : std::string()),
      metadata(call.metadata()),
      deadline(call.deadline()),
      auth(call.auth_context()),
      outbox(std::move(box)) {}

PythonCall::~PythonCall() = default;

PythonCall::Read PythonCall::take(BufferRef& message, CallCommand& more) {
  if (cancelled_) return Read::kEnd;
  const bool have = !messages_.empty();
  std::size_t ahead = 1;
  if (have) {
    message = std::move(messages_.front());
    messages_.pop();
    more.bytes = message.size();
    if (message.size() <= kSmallMessage) ahead = kReadAhead;
  }
  const std::size_t coming = messages_.size() + credit_;
  if (!half_closed_ && coming < (ahead + 1) / 2) {
    more.count = ahead - coming;
    credit_ += more.count;
  }
  if (have) return Read::kMessage;
  return half_closed_ || over() ? Read::kEnd : Read::kNothingYet;
}

PythonCall::Read PythonCall::read(BufferRef& message) {
  CallCommand more;
  Read result;
  {
    const std::lock_guard lock(mutex_);
    result = take(message, more);
  }
  if (request_streams(kind) && (more.count != 0 || more.bytes != 0)) {
    more.call = shared_from_this();
    outbox->push(std::move(more));
  }
  return result;
}

PythonCall::Read PythonCall::read_or_notify(BufferRef& message) {
  for (;;) {
    const Read result = read(message);
    if (result != Read::kNothingYet) return result;
    const std::lock_guard lock(mutex_);
    if (!messages_.empty() || half_closed_ || over()) continue;
    tell_readable_ = true;
    return result;
  }
}

void PythonCall::wait_readable() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !messages_.empty() || half_closed_ || over(); });
}

bool PythonCall::send_headers(std::unique_ptr<Metadata> initial, std::optional<Encoding> encoding) {
  if (!active()) return false;
  CallCommand command;
  command.kind = CallCommand::Kind::kHeaders;
  command.encoding = encoding;
  command.call = shared_from_this();
  command.metadata = std::move(initial);
  outbox->push(std::move(command));
  return true;
}

bool PythonCall::send(BufferRef message, bool compress, std::optional<Encoding> encoding) {
  {
    const std::lock_guard lock(mutex_);
    if (over()) return false;
    unsent_ += message.size();
  }
  CallCommand command;
  command.kind = CallCommand::Kind::kMessage;
  command.compress = compress;
  command.encoding = encoding;
  command.call = shared_from_this();
  command.message = std::move(message);
  outbox->push(std::move(command));
  return true;
}

bool PythonCall::respond(BufferRef message, bool compress, std::optional<Encoding> encoding,
                         std::unique_ptr<Metadata> trailing) {
  {
    std::unique_lock lock(mutex_);
    if (over()) return false;
    finished_ = true;
    wake_reader(lock);
  }
  CallCommand command;
  command.kind = CallCommand::Kind::kRespond;
  command.compress = compress;
  command.encoding = encoding;
  command.call = shared_from_this();
  command.message = std::move(message);
  command.metadata = std::move(trailing);
  outbox->push(std::move(command));
  return true;
}

bool PythonCall::finish(Status status, std::unique_ptr<Metadata> trailing,
                        std::optional<Encoding> encoding) {
  {
    std::unique_lock lock(mutex_);
    if (over()) return false;
    finished_ = true;
    wake_reader(lock);
  }
  CallCommand command;
  command.kind = CallCommand::Kind::kFinish;
  command.encoding = encoding;
  command.call = shared_from_this();
  command.status = std::move(status);
  command.metadata = std::move(trailing);
  outbox->push(std::move(command));
  return true;
}

void PythonCall::cancel() {
  if (!finish({StatusCode::kCancelled, "the server's handler cancelled the call"}, nullptr, {})) {
    return;
  }
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
}

bool PythonCall::roomy() const { return over() || (unsent_ < kWriteAhead && !stream_full_); }

bool PythonCall::writable() {
  const std::lock_guard lock(mutex_);
  return roomy();
}

bool PythonCall::writable_or_notify() {
  const std::lock_guard lock(mutex_);
  tell_writable_ = !roomy();
  return !tell_writable_;
}

void PythonCall::wait_writable() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return roomy(); });
}

bool PythonCall::active() {
  const std::lock_guard lock(mutex_);
  return !over();
}

bool PythonCall::cancelled() {
  const std::lock_guard lock(mutex_);
  return cancelled_;
}

bool PythonCall::notify_end() {
  const std::lock_guard lock(mutex_);
  if (ended_) return false;
  tell_end_ = true;
  return true;
}

// Tells who waits, with the lock given up.
void PythonCall::wake_reader(std::unique_lock<std::mutex>& lock) {
  const bool tell = std::exchange(tell_readable_, false);
  lock.unlock();
  changed_.notify_all();
  if (tell) method.calls->push(CallEvent::kReadable, shared_from_this());
}

void PythonCall::on_message(BufferRef message) {
  std::unique_lock lock(mutex_);
  if (credit_ != 0) --credit_;
  messages_.push(std::move(message));
  wake_reader(lock);
}

void PythonCall::on_half_close() {
  std::unique_lock lock(mutex_);
  half_closed_ = true;
  wake_reader(lock);
}

void PythonCall::on_sent(std::size_t bytes, bool stream_full) {
  bool tell = false;
  {
    const std::lock_guard lock(mutex_);
    unsent_ -= bytes;
    stream_full_ = stream_full;
    if (!roomy()) return;
    tell = std::exchange(tell_writable_, false);
  }
  changed_.notify_all();
  if (tell) method.calls->push(CallEvent::kWritable, shared_from_this());
}

void PythonCall::on_writable() { on_sent(0, false); }

void PythonCall::on_ended(bool cancelled) {
  bool readable = false;
  bool writable = false;
  bool end = false;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    if (cancelled) cancelled_ = true;
    messages_.clear();
    readable = std::exchange(tell_readable_, false);
    writable = std::exchange(tell_writable_, false);
    end = std::exchange(tell_end_, false) || (cancelled && method.tell_cancel);
  }
  changed_.notify_all();
  if (readable) method.calls->push(CallEvent::kReadable, shared_from_this());
  if (writable) method.calls->push(CallEvent::kWritable, shared_from_this());
  if (end) method.endings->push(CallEvent::kEnded, shared_from_this());
  if (method.limit != nullptr) method.limit->active.fetch_sub(1, std::memory_order_relaxed);
  self_.reset();
}

PythonCallHandle::~PythonCallHandle() {
  if (call_->active()) {
    call_->finish(Status::internal("the server's handler left the call without an answer"),
                  std::move(trailing), {});
  }
}

// --- the handler -----------------------------------------------------------------------------

PythonCallRef PythonHandler::accept(Call& call) {
  CallLimit* limit = method_.limit;
  if (limit != nullptr && limit->active.fetch_add(1, std::memory_order_relaxed) >= limit->most &&
      limit->most != 0) {
    limit->active.fetch_sub(1, std::memory_order_relaxed);
    call.fail(Status::resource_exhausted("Concurrent RPC limit exceeded!"));
    return nullptr;
  }
  if (method_.encoding != Encoding::kIdentity) call.set_compression(method_.encoding);
  auto python = std::make_shared<PythonCall>(method_, outbox_, call);
  python->keep();
  call.context = python.get();
  return python;
}

void PythonHandler::submit(PythonCallRef call) {
  PythonCall& python = *call;
  if (!method_.calls->push(CallEvent::kReady, std::move(call))) {
    Call* rpc = outbox_->calls().find(python.rpc_id);
    if (rpc == nullptr) return;
    rpc->fail(Status::unavailable("the server's Python handlers are busy; try again"));
    return python.on_ended(true);
  }
  outbox_->tick_while_busy();
}

void PythonHandler::on_unary(Call& call, BufferRef message) {
  PythonCallRef python = accept(call);
  if (python == nullptr) return;
  python->on_message(std::move(message));
  python->on_half_close();
  submit(std::move(python));
}

void PythonHandler::on_open(Call& call) {
  PythonCallRef python = accept(call);
  if (python == nullptr) return;
  call.request_messages(1);  // nearly every handler wants it
  submit(std::move(python));
}

void PythonHandler::on_message(Call& call, BufferRef message) {
  static_cast<PythonCall*>(call.context)->on_message(std::move(message));
}

void PythonHandler::on_half_close(Call& call) {
  static_cast<PythonCall*>(call.context)->on_half_close();
}

void PythonHandler::on_writable(Call& call) {
  static_cast<PythonCall*>(call.context)->on_writable();
}

void PythonHandler::on_cancel(Call& call) {
  static_cast<PythonCall*>(call.context)->on_ended(true);
}

}  // namespace headrace
