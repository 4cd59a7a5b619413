// gather: the rows of a batch's requests into the memory of an Instance. split: the rows of its
// outputs into each request's response. split after gather is the identity: property-tested.
#pragma once

#include "backends/backend.h"
#include "batching/batcher.h"
#include "core/model_spec.h"

namespace headrace {

// Copies the batch's rows into the instance's inputs (`TensorSpec::backend_index`), with `reshape`
// applied. Errors: what the instance answers; INTERNAL when it offers too little memory.
Status gather(const Batch& batch, const ModelSpec& spec, Instance& instance);

// Fills `response.outputs` of every request with its rows of the outputs it asked for (all, when it
// named none), in the order it named them. One copy at most: rows of owned outputs are views.
// Errors: INTERNAL when an output's batch dimension is not the batch's, or its dtype not the spec's.
Status split(Batch& batch, const ModelSpec& spec, Instance& instance);

}  // namespace headrace
