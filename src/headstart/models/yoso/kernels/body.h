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
#undef FOR_COLUMNS
#undef FOR_TILE
#undef FOUR
#undef DOT_ROWS
#undef GROUPS
#undef WIDE_SLICE
#undef NARROW_SLICE
#undef TABLE_FLOATS
#undef TABLES_FLOATS
#undef LONG_TEXT
#undef BLOCK
#undef HASH_BLOCK
#undef TILE_ROWS
#undef Wave
#undef Buckets
#undef Exact
#undef EXACT_KEYS
#undef EXACT_TILE
#undef EXACT_QUERIES
#undef PANEL
#undef ARCCOS
