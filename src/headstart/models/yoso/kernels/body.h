/* Everything for one instruction set: LANES floats in a vector, NAME(x) = x with a suffix. No include guard. */
#include "vectors.h"
#include "hash.h"
#include "sampled.h"
#include "exact.h"

static const Kernels NAME(kernels) = {
    NAME(sampled_forward),
    NAME(sampled_backward),
    NAME(exact_forward),
    NAME(exact_backward),
};

#undef VF
#undef VFU
#undef VI
#undef LOAD
#undef STORE
#undef INLINE
#undef DOT_ROWS
#undef GROUPS
#undef SLICE
#undef TABLES
#undef HASH_BLOCK
#undef TILE_ROWS
#undef VECTORS_IN_SLICE
#undef Wave
#undef Buckets
#undef Exact
#undef EXACT_KEYS
#undef EXACT_TILE
#undef EXACT_QUERIES
#undef PANEL
#undef ARCCOS
