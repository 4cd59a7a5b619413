#include "bindings/python_pool.h"

#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <utility>

#include "bindings/python_status.h"

namespace py = pybind11;

namespace headrace {
namespace {

// A handler that takes longer should not hold up others.
constexpr Nanoseconds kSlow = std::chrono::microseconds(500);
// Slowness of a method: up by kSlowStep for a slow call, down by one for a quick one. Above the
// limit its calls run beside the leader's.
constexpr int kSlowStep = 2;
constexpr int kSlowLimit = 8;
constexpr int kSlowMost = 16;
// Answers wait this long at most for the leader to wake their loop.
constexpr Nanoseconds kDeferred = std::chrono::microseconds(100);

bool may_wait(const PythonMethod& method) {
  return method.blocking || method.kind != MethodKind::kUnary ||
         method.slowness.load(std::memory_order_relaxed) > kSlowLimit;
}

// A fresh contextvars context around one call: what a handler sets does not reach the next.
class FreshContext {
 public:
  FreshContext() : context_(PyContext_New()) {
    if (context_ == nullptr || PyContext_Enter(context_) != 0) throw py::error_already_set();
  }
  ~FreshContext() {
    PyContext_Exit(context_);
    Py_DECREF(context_);
  }
  FreshContext(const FreshContext&) = delete;
  FreshContext& operator=(const FreshContext&) = delete;

 private:
  PyObject* context_;
};

// With the GIL. The answer of run(message, call), if it answers bytes, ends the call.
void run_call(const PythonCallRef& call) {
  py::object message = py::none();
  if (!request_streams(call->kind)) {
    BufferRef bytes;
    if (call->read(bytes) != PythonCall::Read::kMessage) return;  // the client is gone
    message = py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  auto owned = std::make_unique<PythonCallHandle>(call);
  PythonCallHandle& said = *owned;
  const py::object handle = py::cast(std::move(owned));
  try {
    const FreshContext context;
    PyObject* arguments[] = {message.ptr(), handle.ptr()};
    const auto answer = py::reinterpret_steal<py::object>(
        PyObject_Vectorcall(call->method.run.ptr(), arguments, 2, nullptr));
    if (!answer) throw py::error_already_set();
    if (answer.is_none()) return;
    char* data = nullptr;
    py::ssize_t size = 0;
    if (PyBytes_AsStringAndSize(answer.ptr(), &data, &size) != 0) throw py::error_already_set();
    const auto bytes = static_cast<std::size_t>(size);
    BufferRef response = BufferRef::allocate(Call::kPrefixBytes + bytes);
    std::memcpy(response.data() + Call::kPrefixBytes, data, bytes);
    call->respond(std::move(response), said.compress_next, said.encoding, std::move(said.trailing));
  } catch (const py::error_already_set& error) {
    // grpcio's text for a handler that raised.
    call->finish(
        status_of_exception(error, StatusCode::kUnknown, "Exception calling application: "),
        std::move(said.trailing), said.encoding);
  }
}

}  // namespace

class PythonPool::Worker {
 public:
  explicit Worker(PythonPool& owner) : pool(owner) {}

  bool leads() {
    const std::lock_guard lock(pool.mutex_);
    return pool.leader_ == this;
  }
  void defer(CallOutbox& outbox) {
    if (std::find(deferred_.begin(), deferred_.end(), &outbox) == deferred_.end()) {
      if (deferred_.empty()) since_ = Clock::now();
      deferred_.push_back(&outbox);
    }
  }
  void wake_deferred() {
    for (CallOutbox* outbox : deferred_) outbox->wake();
    deferred_.clear();
  }
  bool deferred_long(TimePoint now) const { return !deferred_.empty() && now - since_ > kDeferred; }

  PythonPool& pool;

 private:
  std::vector<CallOutbox*> deferred_;
  TimePoint since_;
};

namespace {
thread_local void* current_worker = nullptr;
}  // namespace

PythonPool::PythonPool(Options options) : options_(std::move(options)) {}

PythonPool::~PythonPool() {
  const py::gil_scoped_release release;
  stop();
  for (std::thread& thread : threads_) thread.join();
}

bool PythonPool::on_worker() const {
  const auto* worker = static_cast<const Worker*>(current_worker);
  return worker != nullptr && &worker->pool == this;
}

bool PythonPool::defer_wake(CallOutbox& outbox) {
  auto* worker = static_cast<Worker*>(current_worker);
  if (worker == nullptr || !worker->leads()) return false;
  worker->defer(outbox);
  return true;
}

void PythonPool::step_aside() {
  auto* worker = static_cast<Worker*>(current_worker);
  if (worker == nullptr) return;
  worker->wake_deferred();
  PythonPool& pool = worker->pool;
  const std::lock_guard lock(pool.mutex_);
  if (pool.leader_ != worker) return;
  pool.leader_ = nullptr;
  if (!pool.jobs_.empty()) pool.call_worker();
}

void PythonPool::call_worker() {
  if (called_) return;
  if (idle_ != 0) {
    called_ = true;
    changed_.notify_one();
  } else if (threads_.size() < options_.threads) {
    try {
      threads_.emplace_back([this, number = threads_.size()] { run(number); });
      called_ = true;
      ++alive_;
    } catch (const std::system_error&) {
      // No thread to be had: those there are come to it.
    }
  }
}

bool PythonPool::push(CallEvent event, PythonCallRef call) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return false;
  if (event == CallEvent::kReady && options_.queue_bound != 0 &&
      jobs_.size() >= options_.queue_bound) {
    return false;
  }
  jobs_.push_back({event, std::move(call)});
  if (leader_ == nullptr) call_worker();
  if (threads_.empty()) {  // and none to be had
    jobs_.pop_back();
    return false;
  }
  return true;
}

bool PythonPool::tick(uint64_t& seen) {
  const std::lock_guard lock(mutex_);
  if (leader_ != nullptr && in_job_) {
    if (job_number_ == seen) {
      leader_ = nullptr;
      if (!jobs_.empty()) call_worker();
    }
    seen = job_number_;
  }
  return !stopping_ && (leader_ != nullptr || called_ || !jobs_.empty());
}

void PythonPool::stop() {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return alive_ <= running_; });
}

void PythonPool::run(std::size_t number) {
  ::pthread_setname_np(::pthread_self(), options_.name.substr(0, 15).c_str());
  // One thread state for the thread's life: threading.local and the like last.
  const PyGILState_STATE gil = PyGILState_Ensure();
  if (!options_.on_thread_start.is_none()) {
    try {
      options_.on_thread_start(number);
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("starting a thread for RPC handlers");
    }
  }
  PyThreadState* state = PyEval_SaveThread();
  Worker me(*this);
  current_worker = &me;

  std::unique_lock lock(mutex_);
  for (;;) {
    while (!stopping_ && (leader_ != nullptr || jobs_.empty())) {
      called_ = false;
      ++idle_;
      changed_.wait(lock);
      --idle_;
    }
    called_ = false;
    if (jobs_.empty()) break;  // stopping
    leader_ = &me;
    in_job_ = false;
    lock.unlock();
    PyEval_RestoreThread(state);
    lock.lock();
    TimePoint began = Clock::now();
    while (leader_ == &me && !jobs_.empty()) {
      Job job = std::move(jobs_.front());
      jobs_.pop_front();
      if (stopping_ && job.event != CallEvent::kEnded) continue;
      ++job_number_;
      in_job_ = true;
      PythonMethod& method = job.call->method;
      if (may_wait(method)) {
        leader_ = nullptr;
        if (!jobs_.empty()) call_worker();
      }
      const bool led = leader_ == &me;
      ++running_;
      lock.unlock();
      if (!led || me.deferred_long(began)) me.wake_deferred();
      run_job(job);
      job.call.reset();
      const TimePoint now = Clock::now();
      if (job.event == CallEvent::kReady) {
        const int slowness = method.slowness.load(std::memory_order_relaxed);
        method.slowness.store(now - began > kSlow ? std::min(slowness + kSlowStep, kSlowMost)
                                                  : std::max(slowness - 1, 0),
                              std::memory_order_relaxed);
      }
      began = now;
      lock.lock();
      --running_;
      if (leader_ == nullptr && !jobs_.empty()) leader_ = &me;
      if (leader_ == &me) in_job_ = false;
    }
    if (leader_ == &me) leader_ = nullptr;
    lock.unlock();
    me.wake_deferred();
    state = PyEval_SaveThread();
    lock.lock();
  }
  lock.unlock();
  current_worker = nullptr;
  PyEval_RestoreThread(state);
  PyGILState_Release(gil);
  lock.lock();
  --alive_;
  changed_.notify_all();
}

void PythonPool::run_job(Job& job) {
  if (job.event == CallEvent::kReady) {
    if (!job.call->active()) return;
    try {
      run_call(job.call);
    } catch (const std::exception& error) {  // no memory, as a rule
      job.call->finish({StatusCode::kResourceExhausted, error.what()}, nullptr, {});
    }
    return;
  }
  if (job.event != CallEvent::kEnded) return;
  try {
    job.call->method.ended(job.call->id);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("telling that a call has ended");
  }
}

}  // namespace headrace
