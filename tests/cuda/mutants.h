// The defects that the kernels can be given (HEADRACE_MUTANT): each must be noticed by the tests.
#pragma once

#include <array>
#include <string_view>

namespace headrace::cuda::emulation {

#define HEADRACE_CUDA_MUTANTS(X)                                           \
  X(kNoBarrierInLoop)      /* the ring is read before it is filled */      \
  X(kWaitTooFew)           /* one group of cp.async more is under way */   \
  X(kWrongStage)           /* the ring is filled one stage too far */      \
  X(kRefillBeforeBarrier)  /* others still read what is overwritten */     \
  X(kFragmentOrder)        /* halves of a B fragment exchanged */          \
  X(kFragmentRegister)     /* a wrong register goes into an mma */         \
  X(kUnswizzledRead)       /* chunks read from where they are not */       \
  X(kLoadRowUnbounded)     /* rows past the matrix are read */             \
  X(kMisalignedCopy)       /* cp.async from an address not aligned */      \
  X(kTailUnmasked)         /* columns past k are multiplied */             \
  X(kStoreRowUnbounded)    /* one row too many is written */               \
  X(kStoreColumnUnbounded) /* one column too many is written */            \
  X(kScalesMixed)          /* a row's scale looked up by column */         \
  X(kPairsUnaligned)       /* two elements stored where one is aligned */  \
  X(kPanelUnseen)          /* the fused panel is read without a barrier */ \
  X(kHalfShuffleTree)      /* a reduction leaves out half the warp */      \
  X(kReturnBeforeShuffle)  /* lanes leave before the others shuffle */     \
  X(kNoBarrierInReduction) /* partial results read before written */       \
  X(kPartialsShared)       /* two reductions share their memory */         \
  X(kNanLost)              /* the maximum forgets NaN */                   \
  X(kTruncates)            /* towards zero instead of to nearest */        \
  X(kNoClamp)              /* int8 wraps round */                          \
  X(kPacksUnaligned)       /* four elements loaded where one is aligned */ \
  X(kVarianceOfPadding)    /* columns past k count as values */            \
  X(kNoEpsilon)            /* a constant row divides by zero */            \
  X(kSourceUnbounded)      /* a short row is read to the width */          \
  X(kWidthUnbounded)       /* one element too many is written */           \
  X(kChannelOfPlane)       /* the channel by element, not by plane */

enum class Mutant {
  kNothing,
#define HEADRACE_ENUMERATOR(name) name,
  HEADRACE_CUDA_MUTANTS(HEADRACE_ENUMERATOR)
#undef HEADRACE_ENUMERATOR
};

struct NamedMutant {
  Mutant mutant;
  std::string_view name;
};

inline constexpr auto kMutants = std::to_array<NamedMutant>({
#define HEADRACE_NAMED(name) {Mutant::name, #name},
    HEADRACE_CUDA_MUTANTS(HEADRACE_NAMED)
#undef HEADRACE_NAMED
});

inline Mutant mutant = Mutant::kNothing;

}  // namespace headrace::cuda::emulation
