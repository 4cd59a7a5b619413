#include "bindings/python_pool.h"

#include <pthread.h>

#include <cstring>
#include <system_error>
#include <utility>

#include "bindings/python_status.h"

namespace py = pybind11;

namespace headrace {
namespace {

constexpr std::size_t kQueueBound = 4096;
PythonReply run_job(const PythonJob& job) {
  PythonReply reply{job.call_id, Status(), BufferRef(), job.info};
  try {
    const py::bytes request(reinterpret_cast<const char*>(job.message.data()), job.message.size());
    const py::object answer = (*job.handler)(request, job.info);
    const std::string_view bytes = py::bytes(answer);
    reply.message = BufferRef::allocate(Call::kPrefixBytes + bytes.size());
    std::memcpy(reply.message.data() + Call::kPrefixBytes, bytes.data(), bytes.size());
  } catch (const py::error_already_set& error) {
    // grpcio's text for a handler that raised.
    reply.status =
        status_of_exception(error, StatusCode::kUnknown, "Exception calling application: ");
  } catch (const std::exception& error) {
    reply.status = {StatusCode::kUnknown,
                    std::string("Exception calling application: ") + error.what()};
  }
  return reply;
}

}  // namespace

PythonReplies::PythonReplies(EventLoop& loop, CallSet& calls) : loop_(loop), calls_(calls) {
  loop_.add_inbox(*this);
}

void PythonReplies::post(PythonReply reply) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(reply));
  }
  loop_.wake();
}

void PythonReplies::on_wake() {
  std::vector<PythonReply> replies;
  {
    const std::lock_guard lock(mutex_);
    if (inbox_.empty()) return;
    replies.swap(inbox_);
  }
  std::vector<BodyPiece> rest;
  for (PythonReply& reply : replies) {
    Call* call = calls_.find(reply.call_id);
    if (call == nullptr) continue;  // the client is gone
    const CallInfo& info = *reply.info;
    if (reply.status.ok()) {
      call->respond(std::move(reply.message), rest, &info.initial_metadata,
                    &info.trailing_metadata);
    } else {
      call->fail(reply.status, &info.trailing_metadata);
    }
  }
}

PythonPool::PythonPool(std::size_t threads, std::size_t jobs_per_hold, std::string name)
    : size_(threads), jobs_per_hold_(jobs_per_hold), name_(std::move(name)) {}

PythonPool::~PythonPool() { stop(); }

bool PythonPool::submit(PythonJob job) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || jobs_.size() >= kQueueBound) return false;
    jobs_.push_back(std::move(job));
    // Only while there are more jobs than idle workers: most servers need one.
    if (threads_.size() < size_ && jobs_.size() > idle_) {
      try {
        threads_.emplace_back([this] { run(); });
      } catch (const std::system_error&) {  // no thread to be had: do with those there are
        if (threads_.empty()) {
          jobs_.pop_back();
          return false;
        }
      }
    }
  }
  changed_.notify_one();
  return true;
}

void PythonPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    jobs_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void PythonPool::run() {
  ::pthread_setname_np(::pthread_self(), name_.c_str());
  std::vector<PythonJob> taken;
  std::vector<PythonReply> replies;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      ++idle_;
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      --idle_;
      if (stopping_) return;
      // A share of what waits: the others take theirs.
      const std::size_t share = (jobs_.size() + threads_.size() - 1) / threads_.size();
      while (!jobs_.empty() && taken.size() < std::min(share, jobs_per_hold_)) {
        taken.push_back(std::move(jobs_.front()));
        jobs_.pop_front();
      }
    }
    {
      const py::gil_scoped_acquire gil;
      for (const PythonJob& job : taken) {
        if (job.info->cancelled.load(std::memory_order_relaxed)) continue;
        PythonReply reply = run_job(job);
        job.replies->post(std::move(reply));
      }
    }
    taken.clear();
  }
}

void PythonHandler::on_unary(Call& call, BufferRef message) {
  auto info = std::make_shared<CallInfo>();
  info->method = call.path();
  info->peer = call.peer();
  if (call.principal()) info->principal = call.principal()->name;
  info->metadata = call.metadata();
  info->deadline = call.deadline();
  // Valid as long as the call waits: the job, then its reply, holds the CallInfo.
  call.context = info.get();
  const uint64_t id = call.id();
  if (!pool_.submit({&handler_, std::move(message), std::move(info), id, replies_})) {
    call.fail(Status::unavailable("the server's Python handlers are busy; try again"));
  }
}

void PythonHandler::on_cancel(Call& call) {
  static_cast<CallInfo*>(call.context)->cancelled.store(true, std::memory_order_relaxed);
}

}  // namespace headrace
