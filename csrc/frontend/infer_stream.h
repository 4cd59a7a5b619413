// ModelStreamInfer: a stream of ModelInferRequests, each inferred by itself, at the same time as the
// others; the answers go back in the order of the requests, as Triton sends them.
//
// Threads: its loop's. Bounds: kMaxInFlight requests of a stream are in the server, from their arrival until
// their answer is queued; the next are taken from the client when answers have gone.
// Errors: a request that fails is answered with error_message and the request's id, and the stream goes on, unless
// the client asked for statuses (metadata `triton_grpc_error: true`): then the first error ends it. Bytes
// that are no ModelInferRequest end the stream with INTERNAL.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <vector>

#include "frontend/kserve_service.h"

namespace headrace {

class KServeService::InferStreamHandler final : public Handler {
 public:
  static constexpr std::size_t kMaxInFlight = 256;

  explicit InferStreamHandler(KServeService& service) : service_(service) {}

  // A Request of `call`, which still waits, is answered.
  void answered(Call& call, RequestPtr request);

  void on_open(Call& call) override;
  void on_message(Call& call, BufferRef message) override;
  void on_half_close(Call& call) override;
  void on_writable(Call& call) override;
  void on_cancel(Call& call) override;

 private:
  // One request, in the order of arrival. Request::call points at it.
  struct Slot {
    Request* running = nullptr;  // not answered yet
    RequestPtr answered;
    std::size_t bytes = 0;  // charged to the receive budget
  };
  // A call's context.
  struct InferStream {
    std::deque<Slot> slots;
    bool half_closed = false;
    bool errors_end_it = false;
  };

  // Sends the answers at the front, as far as the client takes them. The stream may end here.
  void send_ready(Call& call);
  // False: the call has ended.
  bool send_answer(Call& call, const Request& request);
  // Cancels what runs and frees the stream. The call is finished, or will be at once.
  void end(Call& call);

  KServeService& service_;
  std::string scratch_;
  std::vector<BodyPiece> pieces_;
};

}  // namespace headrace
