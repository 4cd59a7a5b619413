// Signature: whether a ModelSpec (from config.pbtxt, or completed from the artifact) and a batch
// policy suit the model that was loaded. Errors name the tensor or the setting, for the person who
// wrote the configuration. Pure; any thread.
#pragma once

#include "backends/backend.h"
#include "base/status.h"
#include "batching/batch_policy.h"
#include "core/model_spec.h"

namespace headrace {

// Checks `spec` against the model's own signature and sets every TensorSpec::backend_index.
// Errors: INVALID_ARGUMENT naming the first tensor that does not fit.
Status bind_signature(ModelSpec& spec, const Model& model);

// Checks a policy against the signature's max_batch_size, and sorts its preferred sizes.
// Errors: INVALID_ARGUMENT naming the setting.
Status check_policy(BatchPolicy& policy, const ModelSpec& spec);

}  // namespace headrace
