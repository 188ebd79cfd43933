/* Sampled attention. Included once for every instruction set, after vectors.h and hash.h; no include guard.
 *
 * A wave of heads is worked on at a time, so that only the codes of those heads are in memory. */

/* Value columns are summed in slices: wide ones for four hashes at a time, narrow ones, where there are no more columns, for eight. So the
 * bucket sums of these hashes (256 KiB for 9 bits) stay in the second cache, and so do the rows of a block of tokens. Short texts are one
 * block, and few hashes' tables are alive. Long texts go block by block through the tables of as many hashes as have room, so that their
 * rows are read and written once. */
#define WIDE_SLICE 32
#define NARROW_SLICE 16
#define TABLE_FLOATS 128    /* floats of one bucket of the hashes that are summed at a time */
#define TABLES_FLOATS (1 << 20) /* of all tables that are alive for a long text */
#ifdef YOSO_SMALL_BLOCKS    /* tests under sanitizers and emulators, which take long for long texts */
#define LONG_TEXT 100
#define BLOCK 16
#else
#define LONG_TEXT 16384     /* queries and keys above which a text is long */
#define BLOCK 4096          /* tokens of a block of a long text */
#endif
#define HASH_BLOCK 512      /* tokens hashed by one piece of work */
#define TILE_ROWS 32        /* rows of a bucket that are multiplied together in the backward pass */

#define Wave NAME(WaveOf)
typedef struct {
    const Problem *p;
    int64_t first, heads;         /* rows of heads in this wave */
    int64_t table_rows;           /* buckets of one hash */
    uint16_t *q_codes, *k_codes;  /* (heads, M, L) and (heads, M, S) */
    float *scratch;               /* of all threads */
    int64_t scratch_floats;       /* of one thread */
    /* What `sum_slice` adds up: values of the "from" side into rows of the "to" side. */
    const Tensor *from, *to;
    const uint16_t *from_codes, *to_codes;
    int64_t from_tokens, to_tokens;
    int64_t slice, block, table_hashes; /* columns, tokens and hashes that go together */
    /* Private sums of g_query and g_key where several pieces of work share a head. */
    int64_t parts;
    float *partial;
} Wave;

INLINE void *NAME(scratch_of)(const Wave *w, int64_t slot) { return w->scratch + slot * w->scratch_floats; }

/* Hashes a block of one side's tokens of one head. */
static void NAME(hash_block)(void *context, int64_t number, int64_t slot) {
    const Wave *w = context;
    const Problem *p = w->p;
    const int64_t q_blocks = yoso_blocks(p->queries, HASH_BLOCK), k_blocks = yoso_blocks(p->keys, HASH_BLOCK);
    const int64_t head = number / (q_blocks + k_blocks), n = w->first + head;
    int64_t block = number % (q_blocks + k_blocks);
    const int is_key = block >= q_blocks;
    if (is_key) block -= q_blocks;
    const Tensor *x = is_key ? &p->key : &p->query;
    const int64_t tokens = is_key ? p->keys : p->queries, start = block * HASH_BLOCK, end = yoso_min(tokens, start + HASH_BLOCK);
    uint16_t *codes = (is_key ? w->k_codes : w->q_codes) + head * p->num_hash * tokens;
    const float *rows = yoso_head(x, p->heads, n);
    VF *vectors = NAME(scratch_of)(w, slot);
    if (p->dense) {
        const float *directions = p->dense + n * p->size * p->num_hash * p->hash_code_len;
        for (int64_t t = start; t < end; t += GROUPS * LANES)
            NAME(dense_codes)(p, directions, rows + t * x->token_stride, x->token_stride, yoso_min(GROUPS * LANES, end - t), codes + t,
                              tokens, vectors);
        return;
    }
    const int64_t signs = 3 * p->transforms * p->transform_size;
    int32_t *flips = (int32_t *)(vectors + 2 * p->transform_size);
    for (int64_t i = 0; i < signs; i++) flips[i] = p->signs[n * signs + i] < 0 ? INT32_MIN : 0;
    for (int64_t t = start; t < end; t += LANES)
        NAME(fast_codes)(p, flips, rows + t * x->token_stride, x->token_stride, yoso_min(LANES, end - t), codes + t, tokens, vectors);
}

/* Renumbers the codes of one hash of one head to 0, 1, … in the keys' order, so that tables need a row per key at most.
 * Queries that no key shares a bucket with get a bucket of their own. */
static void NAME(renumber)(void *context, int64_t number, int64_t slot) {
    const Wave *w = context;
    const Problem *p = w->p;
    uint16_t *names = NAME(scratch_of)(w, slot), *k_codes = w->k_codes + number * p->keys, *q_codes = w->q_codes + number * p->queries;
    const uint16_t none = 0xFFFF; /* no number of a bucket: there are fewer keys than codes, so fewer buckets than 65535 */
    uint16_t buckets = 0;
    for (int64_t code = 0; code < (int64_t)1 << p->hash_code_len; code++) names[code] = none;
    for (int64_t j = 0; j < p->keys; j++) {
        uint16_t *name = names + k_codes[j];
        if (*name == none) *name = buckets++;
        k_codes[j] = *name;
    }
    for (int64_t i = 0; i < p->queries; i++) q_codes[i] = names[q_codes[i]] == none ? buckets : names[q_codes[i]];
}

/* Adds a block of rows to the bucket sums of G hashes. Rows are slices of SIZE floats, tables are (G, rows, SIZE). */
INLINE void NAME(add_to_buckets)(float *tables, int64_t rows, const float *from, const uint16_t *codes, int64_t code_step, int64_t count,
                                 const int G, const int SIZE) {
    for (int64_t j = 0; j < count; j++) {
        VF value[SIZE / LANES];
#pragma GCC unroll 8
        for (int c = 0; c < SIZE / LANES; c++) value[c] = LOAD(from + j * SIZE + c * LANES);
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {
            float *sum = tables + (g * rows + codes[g * code_step + j]) * SIZE;
#pragma GCC unroll 8
            for (int c = 0; c < SIZE / LANES; c++) STORE(sum + c * LANES, LOAD(sum + c * LANES) + value[c]);
        }
    }
}

/* acc += the sums of the buckets that a block of tokens lies in. */
INLINE void NAME(add_bucket_sums)(const float *tables, int64_t rows, float *acc, const uint16_t *codes, int64_t code_step, int64_t count,
                                  const int G, const int SIZE) {
    for (int64_t i = 0; i < count; i++) {
        VF total[SIZE / LANES];
#pragma GCC unroll 8
        for (int c = 0; c < SIZE / LANES; c++) total[c] = LOAD(acc + i * SIZE + c * LANES);
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) {
            const float *sum = tables + (g * rows + codes[g * code_step + i]) * SIZE;
#pragma GCC unroll 8
            for (int c = 0; c < SIZE / LANES; c++) total[c] += LOAD(sum + c * LANES);
        }
#pragma GCC unroll 8
        for (int c = 0; c < SIZE / LANES; c++) STORE(acc + i * SIZE + c * LANES, total[c]);
    }
}

/* Copies rows of `width` columns between a tensor and a slice, scaled. */
INLINE void NAME(copy_slice)(float *to, int64_t to_step, const float *from, int64_t from_step, int64_t count, int64_t width, float scale) {
    if (width == WIDE_SLICE) { /* a constant, for the compiler */
        for (int64_t t = 0; t < count; t++)
            for (int64_t c = 0; c < WIDE_SLICE; c++) to[t * to_step + c] = from[t * from_step + c] * scale;
        return;
    }
    for (int64_t t = 0; t < count; t++)
        for (int64_t c = 0; c < width; c++) to[t * to_step + c] = from[t * from_step + c] * scale;
}

/* One slice of the value columns of one head: out[i] = mean over the hashes of the sum over i's bucket. */
static void NAME(sum_slice)(void *context, int64_t number, int64_t slot) {
    const Wave *w = context;
    const Problem *p = w->p;
    const int64_t size = w->slice, slices = yoso_blocks(p->value_size, size), head = number / slices, column = number % slices * size;
    const int64_t width = yoso_min(size, p->value_size - column), rows = w->table_rows, M = p->num_hash;
    const int64_t from_step = w->from->token_stride, to_step = w->to->token_stride;
    float *tables = NAME(scratch_of)(w, slot), *from = tables + w->table_hashes * rows * size, *acc = from + w->block * size;
    const float *source = yoso_head(w->from, p->heads, w->first + head) + column;
    float *target = yoso_head(w->to, p->heads, w->first + head) + column;
    const uint16_t *from_codes = w->from_codes + head * M * w->from_tokens, *to_codes = w->to_codes + head * M * w->to_tokens;
#define CALL(DO, block, codes, tokens, G, SIZE) \
    NAME(DO)(tables + (h - first) * rows * size, rows, block, codes + h * tokens + t, tokens, count, G, SIZE)
#define EACH_HASH(DO, block, codes, tokens)                                             \
    do {                                                                                \
        int64_t h = first;                                                              \
        if (size == WIDE_SLICE) {                                                       \
            for (; h + 4 <= last; h += 4) CALL(DO, block, codes, tokens, 4, WIDE_SLICE);   \
            for (; h < last; h++) CALL(DO, block, codes, tokens, 1, WIDE_SLICE);           \
        } else {                                                                        \
            for (; h + 8 <= last; h += 8) CALL(DO, block, codes, tokens, 8, NARROW_SLICE); \
            for (; h < last; h++) CALL(DO, block, codes, tokens, 1, NARROW_SLICE);         \
        }                                                                               \
    } while (0)
    if (width < size) __builtin_memset(from, 0, sizeof(float) * size * w->block);
    for (int64_t first = 0; first < M; first += w->table_hashes) {
        const int64_t last = yoso_min(M, first + w->table_hashes);
        __builtin_memset(tables, 0, sizeof(float) * (last - first) * rows * size);
        for (int64_t t = 0; t < w->from_tokens; t += w->block) {
            const int64_t count = yoso_min(w->block, w->from_tokens - t);
            if (!first || w->from_tokens > w->block)
                NAME(copy_slice)(from, size, source + t * from_step, from_step, count, width, 1.0f / (float)M);
            EACH_HASH(add_to_buckets, from, from_codes, w->from_tokens);
        }
        for (int64_t t = 0; t < w->to_tokens; t += w->block) {
            const int64_t count = yoso_min(w->block, w->to_tokens - t);
            const int in_parts = w->to_tokens > w->block; /* else `acc` holds all tokens from the first hashes to the last */
            if (!first) __builtin_memset(acc, 0, sizeof(float) * size * count);
            else if (in_parts) NAME(copy_slice)(acc, size, target + t * to_step, to_step, count, width, 1.0f);
            EACH_HASH(add_bucket_sums, acc, to_codes, w->to_tokens);
            if (in_parts || last == M) NAME(copy_slice)(target + t * to_step, to_step, acc, size, count, width, 1.0f);
        }
    }
#undef CALL
#undef EACH_HASH
}

/* Scales the rows of a block of one head's output to length one, while they are in the cache. Rows of zeros stay. */
static void NAME(normalize_block)(void *context, int64_t number, int64_t slot) {
    const Wave *w = context;
    const Problem *p = w->p;
    const int64_t blocks = yoso_blocks(p->queries, HASH_BLOCK), head = number / blocks, first = number % blocks * HASH_BLOCK;
    const int64_t last = yoso_min(p->queries, first + HASH_BLOCK), size = p->value_size, whole = size / LANES * LANES;
    (void)slot;
    for (int64_t t = first; t < last; t++) {
        float *row = yoso_head(&p->out, p->heads, w->first + head) + t * p->out.token_stride, squares = 0;
        VF sum = {0};
        for (int64_t c = 0; c < whole; c += LANES) sum += LOAD(row + c) * LOAD(row + c);
        for (int lane = 0; lane < LANES; lane++) squares += sum[lane];
        for (int64_t c = whole; c < size; c++) squares += row[c] * row[c];
        const float length = __builtin_sqrtf(squares), scale = length > 1e-12f ? 1.0f / length : 0.0f;
        for (int64_t c = 0; c < whole; c += LANES) STORE(row + c, LOAD(row + c) * scale);
        for (int64_t c = whole; c < size; c++) row[c] *= scale;
    }
}

/* Rows `order[0…count)` of a tensor's head, packed with padding and scaled. */
INLINE void NAME(pack)(float *to, const float *from, int64_t step, const int32_t *order, int64_t count, int64_t size, float scale) {
    const int64_t padded = NAME(padded)(size);
    for (int64_t r = 0; r < count; r++) {
        const float *row = from + order[r] * step;
        int64_t d = 0;
        for (; d + LANES <= size; d += LANES) STORE(to + r * padded + d, LOAD(row + d) * scale);
        for (; d < size; d++) to[r * padded + d] = row[d] * scale;
        for (; d < padded; d++) to[r * padded + d] = 0;
    }
}

/* The way back: to[order[r]] += packed row r. */
INLINE void NAME(unpack_add)(float *to, const float *from, const int32_t *order, int64_t count, int64_t size) {
    const int64_t padded = NAME(padded)(size);
    for (int64_t r = 0; r < count; r++) {
        float *row = to + order[r] * size;
        int64_t d = 0;
        for (; d + LANES <= size; d += LANES) STORE(row + d, LOAD(row + d) + LOAD(from + r * padded + d));
        for (; d < size; d++) row[d] += from[r * padded + d];
    }
}

/* The gradients of queries and keys for one head: where things are. */
#define Buckets NAME(BucketsOf)
typedef struct {
    const Problem *p;
    const float *query, *key, *value, *grad; /* first rows of the head */
    float *g_query, *g_key;                  /* (L, K) and (S, K), added to */
    float *q, *k, *v, *g, *dq, *dk, *dots;   /* tiles */
    float *key_matrix, *query_matrix;        /* (V, K padded) */
    float scale;
} Buckets;

INLINE void NAME(clear)(float *to, int64_t count) { __builtin_memset(to, 0, sizeof(float) * count); }

/* A small bucket: all pairs of its queries and keys. */
static void NAME(pairs)(const Buckets *b, const int32_t *queries, int64_t num_queries, const int32_t *keys, int64_t num_keys) {
    const Problem *p = b->p;
    const int64_t K = p->size, V = p->value_size, Kp = NAME(padded)(K), Vp = NAME(padded)(V);
    for (int64_t i = 0; i < num_queries; i += TILE_ROWS) {
        const int64_t rows = yoso_min(TILE_ROWS, num_queries - i);
        NAME(pack)(b->q, b->query, p->query.token_stride, queries + i, rows, K, 1.0f);
        NAME(pack)(b->g, b->grad, p->grad.token_stride, queries + i, rows, V, b->scale);
        NAME(clear)(b->dq, rows * Kp);
        for (int64_t j = 0; j < num_keys; j += TILE_ROWS) {
            const int64_t columns = yoso_min(TILE_ROWS, num_keys - j);
            NAME(pack)(b->k, b->key, p->key.token_stride, keys + j, columns, K, 1.0f);
            NAME(pack)(b->v, b->value, p->value.token_stride, keys + j, columns, V, 1.0f);
            NAME(dot_products)(b->dots, TILE_ROWS, b->g, Vp, b->v, Vp, rows, columns, Vp);
            NAME(add_product)(b->dq, Kp, b->dots, TILE_ROWS, 1, b->k, Kp, rows, columns, Kp);
            NAME(clear)(b->dk, columns * Kp);
            NAME(add_product)(b->dk, Kp, b->dots, 1, TILE_ROWS, b->q, Kp, columns, rows, Kp);
            NAME(unpack_add)(b->g_key, b->dk, keys + j, columns, K);
        }
        NAME(unpack_add)(b->g_query, b->dq, queries + i, rows, K);
    }
}

/* A large bucket: through the matrices sum of v[j] k[j]^T and sum of g[i] q[i]^T, so that its cost is linear in its tokens. */
static void NAME(through_matrices)(const Buckets *b, const int32_t *queries, int64_t num_queries, const int32_t *keys, int64_t num_keys) {
    const Problem *p = b->p;
    const int64_t K = p->size, V = p->value_size, Kp = NAME(padded)(K), Vp = NAME(padded)(V);
    NAME(clear)(b->key_matrix, V * Kp);
    NAME(clear)(b->query_matrix, V * Kp);
    for (int64_t j = 0; j < num_keys; j += TILE_ROWS) {
        const int64_t rows = yoso_min(TILE_ROWS, num_keys - j);
        NAME(pack)(b->k, b->key, p->key.token_stride, keys + j, rows, K, 1.0f);
        NAME(pack)(b->v, b->value, p->value.token_stride, keys + j, rows, V, 1.0f);
        NAME(add_product)(b->key_matrix, Kp, b->v, 1, Vp, b->k, Kp, V, rows, Kp);
    }
    for (int64_t i = 0; i < num_queries; i += TILE_ROWS) {
        const int64_t rows = yoso_min(TILE_ROWS, num_queries - i);
        NAME(pack)(b->q, b->query, p->query.token_stride, queries + i, rows, K, 1.0f);
        NAME(pack)(b->g, b->grad, p->grad.token_stride, queries + i, rows, V, b->scale);
        NAME(add_product)(b->query_matrix, Kp, b->g, 1, Vp, b->q, Kp, V, rows, Kp);
        NAME(clear)(b->dq, rows * Kp);
        NAME(add_product)(b->dq, Kp, b->g, Vp, 1, b->key_matrix, Kp, rows, V, Kp);
        NAME(unpack_add)(b->g_query, b->dq, queries + i, rows, K);
    }
    for (int64_t j = 0; j < num_keys; j += TILE_ROWS) {
        const int64_t rows = yoso_min(TILE_ROWS, num_keys - j);
        NAME(pack)(b->v, b->value, p->value.token_stride, keys + j, rows, V, 1.0f);
        NAME(clear)(b->dk, rows * Kp);
        NAME(add_product)(b->dk, Kp, b->v, Vp, 1, b->query_matrix, Kp, rows, V, Kp);
        NAME(unpack_add)(b->g_key, b->dk, keys + j, rows, K);
    }
}

/* Asks for rows that are needed soon; they lie all over the memory. */
INLINE void NAME(fetch)(const float *from, int64_t step, const int32_t *order, int64_t count, int64_t size) {
    for (int64_t r = 0; r < yoso_min(count, TILE_ROWS); r++)
        for (int64_t d = 0; d < size; d += 16) __builtin_prefetch(from + order[r] * step + d);
}

INLINE void NAME(fetch_bucket)(const Buckets *b, const int32_t *queries, int64_t num_queries, const int32_t *keys, int64_t num_keys) {
    const Problem *p = b->p;
    if (!num_queries || !num_keys) return;
    NAME(fetch)(b->query, p->query.token_stride, queries, num_queries, p->size);
    NAME(fetch)(b->grad, p->grad.token_stride, queries, num_queries, p->value_size);
    NAME(fetch)(b->g_query, p->size, queries, num_queries, p->size);
    NAME(fetch)(b->key, p->key.token_stride, keys, num_keys, p->size);
    NAME(fetch)(b->value, p->value.token_stride, keys, num_keys, p->value_size);
    NAME(fetch)(b->g_key, p->size, keys, num_keys, p->size);
}

/* Counting sort: order = tokens by code; bucket c is order[starts[c] … starts[c + 1]). */
static void NAME(sort_by_code)(const uint16_t *codes, int64_t tokens, int64_t rows, int32_t *starts, int32_t *order) {
    __builtin_memset(starts, 0, sizeof(int32_t) * (rows + 2));
    for (int64_t t = 0; t < tokens; t++) starts[codes[t] + 2]++;
    for (int64_t c = 2; c < rows + 2; c++) starts[c] += starts[c - 1];
    for (int64_t t = 0; t < tokens; t++) order[starts[codes[t] + 1]++] = (int32_t)t;
}

/* Gradients of the queries and keys of one head, from every `parts`-th hash. */
static void NAME(differentiate)(void *context, int64_t number, int64_t slot) {
    const Wave *w = context;
    const Problem *p = w->p;
    const int64_t head = number / w->parts, part = number % w->parts, n = w->first + head, rows = w->table_rows;
    const int64_t tile = TILE_ROWS * NAME(padded)(p->size), value_tile = TILE_ROWS * NAME(padded)(p->value_size);
    const int64_t matrix = p->value_size * NAME(padded)(p->size);
    float *at = NAME(scratch_of)(w, slot);
    Buckets b = {.p = p, .scale = (float)p->hash_code_len / (2.0f * (float)p->num_hash)};
    b.query = yoso_head(&p->query, p->heads, n), b.key = yoso_head(&p->key, p->heads, n);
    b.value = yoso_head(&p->value, p->heads, n), b.grad = yoso_head(&p->grad, p->heads, n);
    b.q = at, b.k = b.q + tile, b.dq = b.k + tile, b.dk = b.dq + tile, b.g = b.dk + tile, b.v = b.g + value_tile;
    b.key_matrix = b.v + value_tile, b.query_matrix = b.key_matrix + matrix, b.dots = b.query_matrix + matrix;
    int32_t *q_starts = (int32_t *)(b.dots + TILE_ROWS * TILE_ROWS), *k_starts = q_starts + rows + 2;
    int32_t *q_order = k_starts + rows + 2, *k_order = q_order + p->queries;
    if (w->parts == 1) {
        b.g_query = yoso_head(&p->g_query, p->heads, n), b.g_key = yoso_head(&p->g_key, p->heads, n);
    } else {
        b.g_query = w->partial + number * (p->queries + p->keys) * p->size, b.g_key = b.g_query + p->queries * p->size;
    }
    NAME(clear)(b.g_query, p->queries * p->size);
    NAME(clear)(b.g_key, p->keys * p->size);
    for (int64_t h = part; h < p->num_hash; h += w->parts) {
        NAME(sort_by_code)(w->q_codes + (head * p->num_hash + h) * p->queries, p->queries, rows, q_starts, q_order);
        NAME(sort_by_code)(w->k_codes + (head * p->num_hash + h) * p->keys, p->keys, rows, k_starts, k_order);
        for (int64_t c = 0; c < rows; c++) {
            const int64_t queries = q_starts[c + 1] - q_starts[c], keys = k_starts[c + 1] - k_starts[c];
            if (c + 1 < rows)
                NAME(fetch_bucket)(&b, q_order + q_starts[c + 1], q_starts[c + 2] - q_starts[c + 1], k_order + k_starts[c + 1],
                                   k_starts[c + 2] - k_starts[c + 1]);
            if (!queries || !keys) continue;
            const int64_t by_pairs = queries * keys * (p->size + p->value_size), by_matrices = (queries + keys) * p->size * p->value_size;
            (by_pairs <= by_matrices ? NAME(pairs) : NAME(through_matrices))(&b, q_order + q_starts[c], queries, k_order + k_starts[c], keys);
        }
    }
}

/* Adds up the parts of one head. */
static void NAME(add_parts)(void *context, int64_t head, int64_t slot) {
    const Wave *w = context;
    const Problem *p = w->p;
    const int64_t q_floats = p->queries * p->size, k_floats = p->keys * p->size;
    float *g_query = yoso_head(&p->g_query, p->heads, w->first + head), *g_key = yoso_head(&p->g_key, p->heads, w->first + head);
    (void)slot;
    NAME(clear)(g_query, q_floats);
    NAME(clear)(g_key, k_floats);
    for (int64_t part = 0; part < w->parts; part++) {
        const float *from = w->partial + (head * w->parts + part) * (q_floats + k_floats);
        for (int64_t i = 0; i < q_floats; i++) g_query[i] += from[i];
        for (int64_t i = 0; i < k_floats; i++) g_key[i] += from[q_floats + i];
    }
}

INLINE int NAME(is_long)(const Problem *p) { return p->queries + p->keys > LONG_TEXT; }
INLINE int64_t NAME(block)(const Problem *p) { return NAME(is_long)(p) ? BLOCK : yoso_max(p->queries, p->keys); }

static int64_t NAME(scratch_needed)(const Problem *p, int64_t table_rows, int backward) {
    const int64_t hash = (p->dense ? GROUPS * p->size : 2 * p->transform_size) * LANES + (p->dense ? 0 : 3 * p->transforms * p->transform_size);
    const int64_t sums = yoso_max(TABLE_FLOATS * table_rows, NAME(is_long)(p) ? TABLES_FLOATS : 0) + 2 * NAME(block)(p) * WIDE_SLICE;
    const int64_t tiles = TILE_ROWS * (4 * NAME(padded)(p->size) + 2 * NAME(padded)(p->value_size) + TILE_ROWS);
    const int64_t buckets = tiles + 2 * p->value_size * NAME(padded)(p->size) + 2 * (table_rows + 2) + p->queries + p->keys;
    const int64_t names = ((int64_t)1 << p->hash_code_len) / 2 + 1;
    const int64_t most = yoso_max(yoso_max(hash, sums), yoso_max(names, backward ? buckets : 0));
    return yoso_blocks(most, 1024) * 1024 + 64; /* whole pages, and a line more, so that the threads' scratch differs in its place in the cache */
}

/* Sums of values over buckets, for all heads of the wave. */
static void NAME(sum_wave)(Wave *w, const Tensor *from, const uint16_t *from_codes, int64_t from_tokens, const Tensor *to,
                           const uint16_t *to_codes, int64_t to_tokens) {
    w->from = from, w->from_codes = from_codes, w->from_tokens = from_tokens;
    w->to = to, w->to_codes = to_codes, w->to_tokens = to_tokens;
    w->slice = w->p->value_size <= NARROW_SLICE ? NARROW_SLICE : WIDE_SLICE;
    w->block = NAME(block)(w->p);
    const int64_t few = TABLE_FLOATS / w->slice, room = TABLES_FLOATS / (w->table_rows * w->slice) / few * few;
    w->table_hashes = NAME(is_long)(w->p) ? yoso_max(few, room) : few;
    yoso_parallel(w->p, w->heads * yoso_blocks(w->p->value_size, w->slice), NAME(sum_slice), w);
}

/* An output of so many tokens and columns that nothing was written to yet. */
static void NAME(new_output)(const Problem *p, const Tensor *out, int64_t tokens, int64_t size) {
    const int64_t head = tokens * size, text = p->heads * head;
    if (out->token_stride == size && out->head_stride == head && out->text_stride == text)
        yoso_use_huge_pages(out->data, p->texts * text * (int64_t)sizeof(float));
}

static int NAME(sampled)(const Problem *p, int backward) {
    const int64_t all = p->texts * p->heads, codes = p->num_hash * (p->queries + p->keys);
    const int64_t fitting = p->scratch_limit / (codes * (int64_t)sizeof(uint16_t));
    const int64_t heads = yoso_min(all, yoso_max(p->threads, fitting)), buckets = (int64_t)1 << p->hash_code_len;
    const int renumbered = p->keys < buckets;
    Wave w = {.p = p, .table_rows = renumbered ? p->keys + 1 : buckets};
    w.parts = backward ? yoso_max(1, yoso_min(p->num_hash, p->threads / heads)) : 1;
    w.scratch_floats = NAME(scratch_needed)(p, w.table_rows, backward);
    w.q_codes = yoso_allocate(heads * codes * (int64_t)sizeof(uint16_t));
    w.scratch = yoso_allocate(p->threads * w.scratch_floats * (int64_t)sizeof(float));
    if (w.parts > 1) w.partial = yoso_allocate(heads * w.parts * (p->queries + p->keys) * p->size * (int64_t)sizeof(float));
    const int enough = w.q_codes && w.scratch && (w.parts == 1 || w.partial);
    if (backward) {
        NAME(new_output)(p, &p->g_query, p->queries, p->size);
        NAME(new_output)(p, &p->g_key, p->keys, p->size);
        NAME(new_output)(p, &p->g_value, p->keys, p->value_size);
    } else {
        NAME(new_output)(p, &p->out, p->queries, p->value_size);
    }
    for (w.first = 0; enough && w.first < all; w.first += heads) {
        w.heads = yoso_min(heads, all - w.first);
        w.k_codes = w.q_codes + w.heads * p->num_hash * p->queries;
        yoso_parallel(p, w.heads * (yoso_blocks(p->queries, HASH_BLOCK) + yoso_blocks(p->keys, HASH_BLOCK)), NAME(hash_block), &w);
        if (renumbered) yoso_parallel(p, w.heads * p->num_hash, NAME(renumber), &w);
        if (!backward) {
            NAME(sum_wave)(&w, &p->value, w.k_codes, p->keys, &p->out, w.q_codes, p->queries);
            if (p->normalize) yoso_parallel(p, w.heads * yoso_blocks(p->queries, HASH_BLOCK), NAME(normalize_block), &w);
            continue;
        }
        NAME(sum_wave)(&w, &p->grad, w.q_codes, p->queries, &p->g_value, w.k_codes, p->keys);
        yoso_parallel(p, w.heads * w.parts, NAME(differentiate), &w);
        if (w.parts > 1) yoso_parallel(p, w.heads, NAME(add_parts), &w);
    }
    yoso_free(w.q_codes);
    yoso_free(w.scratch);
    yoso_free(w.partial);
    return enough ? YOSO_OK : YOSO_OUT_OF_MEMORY;
}

static int NAME(sampled_forward)(const Problem *p) { return NAME(sampled)(p, 0); }
static int NAME(sampled_backward)(const Problem *p) { return NAME(sampled)(p, 1); }
