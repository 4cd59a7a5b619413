// gather: the rows of a batch's requests into the memory of an Instance. split: the rows of its
// outputs into each request's response. split after gather is the identity: property-tested.
//
// Requests were checked against `spec` (serving/check_request.h); backends are not trusted: what an
// instance offers or answers is checked here before a byte is read or written.
#pragma once

#include "backends/backend.h"
#include "batching/batcher.h"
#include "core/model_spec.h"

namespace headrace {

// Copies the batch's rows into the instance's inputs (`TensorSpec::backend_index`), with `reshape`
// applied. Errors: what the instance answers; INTERNAL when it offers too little memory.
Status gather(const Batch& batch, const ModelSpec& spec, Instance& instance);

// Fills `response.outputs` of every request with its rows of the outputs it asked for (all, when it
// named none), in the order it named them. Responses are views into one block an output that the
// batch shares: the backend's own when it has an owner, otherwise one copy. (One block a request
// would cost an allocation a request, to free memory a little sooner.) Errors: INTERNAL when an
// output's dtype, shape, batch dimension or byte size is not the spec's, or it lies outside the
// memory of its owner. Then the responses are in no useful state.
Status split(Batch& batch, const ModelSpec& spec, Instance& instance);

}  // namespace headrace
