// check_request: whether a request is one that the model's signature takes. Runs on the I/O thread,
// so a malformed request costs no queue; after it gather and split read the request unchecked.
// Pure; any thread.
#pragma once

#include "base/status.h"
#include "core/model_spec.h"
#include "core/request.h"

namespace headrace {

// Checks a request against the signature and binds its inputs (`input_of`, `rows`). Errors are
// INVALID_ARGUMENT with Triton's texts, in Triton's order: requested outputs, number of inputs,
// their names, batch size, then of each input datatype, shape and bytes. Most are prefixed
// "[request id: <id>] ".
Status check_request(const ModelSpec& spec, Request& request);

}  // namespace headrace
