/* Attention in expectation, block by block. Included once for every instruction set, after vectors.h; no include guard. */

#define EXACT_KEYS 256      /* keys in a block: they, their values and their columns stay in the second-level cache */
#define EXACT_TILE 36       /* queries whose weights against a block of keys are alive at a time */
#define EXACT_QUERIES 216   /* queries in one piece of work */
#define PANEL (2 * LANES)   /* keys whose similarities one pass computes */

/* The polynomial P of arccos(x) / pi = sqrt(1 - x) P(x) for 0 <= x <= 1, within 3e-8. Least squares, reweighted until the
 * largest error was smallest; benchmarks/yoso_attention.py --fit computes it again. */
#define ARCCOS(x)                                                                                                          \
    (0.499999972f + (x) * (-0.068306465f + (x) * (0.0282773402f + (x) * (-0.0156600279f + (x) * (0.00883720411f +          \
     (x) * (-0.00382079363f + (x) * 0.000831334389f))))))

INLINE VF NAME(power)(VF base, int64_t exponent) {
    VF result = exponent & 1 ? base : (VF){0} + 1.0f;
    while (exponent >>= 1) {
        base *= base;
        if (exponent & 1) result *= base;
    }
    return result;
}

/* (1 - arccos(s) / pi) ** exponent; |s| beyond 1 by rounding counts as 1. */
INLINE VF NAME(weight)(VF s, const int64_t exponent) {
    const VF x = (VF)((VI)s & INT32_MAX); /* |s| */
    VF room = 1.0f - x;
    room = (VF)((VI)room & (room > 0.0f));
    const VF angle = NAME(square_root)(room) * ARCCOS(x);
    const VI negative = s < 0.0f;
    return NAME(power)((VF)(((VI)angle & negative) | ((VI)(1.0f - angle) & ~negative)), exponent);
}

INLINE void NAME(weights_to)(float *s, int64_t count, const int64_t exponent) {
    for (int64_t i = 0; i < count; i += 2 * LANES) {
        const VF a = NAME(weight)(LOAD(s + i), exponent), b = NAME(weight)(LOAD(s + i + LANES), exponent);
        STORE(s + i, a);
        STORE(s + i + LANES, b);
    }
}

/* Similarities to weights, in place, for whole panels. The usual exponents are compiled in. */
static void NAME(weights)(float *s, int64_t count, int64_t exponent) {
#define CASE(e)                             \
    case e:                                 \
        NAME(weights_to)(s, count, e);      \
        break
    switch (exponent) {
        CASE(4);
        CASE(5);
        CASE(6);
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        default: NAME(weights_to)(s, count, exponent);
    }
#undef CASE
}

/* Rows of a head, padded. */
static void NAME(copy_rows)(float *to, const float *from, int64_t step, int64_t count, int64_t size) {
    const int64_t padded = NAME(padded)(size);
    for (int64_t r = 0; r < count; r++) {
        __builtin_memcpy(to + r * padded, from + r * step, sizeof(float) * size);
        for (int64_t d = size; d < padded; d++) to[r * padded + d] = 0;
    }
}

/* Rows of a head as columns: panel after panel of (size, PANEL), with zeros for keys that do not exist. */
static void NAME(copy_columns)(float *to, const float *from, int64_t step, int64_t count, int64_t size) {
    for (int64_t first = 0; first < count; first += PANEL)
        for (int64_t d = 0; d < size; d++, to += PANEL)
            for (int64_t r = 0; r < PANEL; r++) to[r] = first + r < count ? from[(first + r) * step + d] : 0.0f;
}

/* out (rows, EXACT_KEYS) = x y^T for y in panels. */
static void NAME(similarities)(float *out, const float *x, int64_t step, const float *columns, int64_t rows, int64_t keys, int64_t size) {
    for (int64_t i = 0; i < rows; i++) __builtin_memset(out + i * EXACT_KEYS, 0, sizeof(float) * yoso_blocks(keys, PANEL) * PANEL);
    for (int64_t j = 0; j < keys; j += PANEL)
        NAME(add_product)(out + j, EXACT_KEYS, x, step, 1, columns + j * size, PANEL, rows, size, PANEL);
}

#define Exact NAME(ExactOf)
typedef struct {
    const Problem *p;
    int64_t parts, part_queries; /* pieces of work for one head, and queries in each */
    float *scratch;
    int64_t scratch_floats;
    float *partial; /* (N, parts, S, K + V), where several parts add to the same keys */
} Exact;

/* out = W v for some queries of a head. */
static void NAME(exact_queries)(void *context, int64_t number, int64_t slot) {
    const Exact *e = context;
    const Problem *p = e->p;
    const int64_t n = number / e->parts, start = number % e->parts * e->part_queries, end = yoso_min(p->queries, start + e->part_queries);
    const int64_t K = p->size, V = p->value_size, Vp = NAME(padded)(V);
    float *columns = e->scratch + slot * e->scratch_floats, *values = columns + EXACT_KEYS * K, *weights = values + EXACT_KEYS * Vp;
    float *sums = weights + EXACT_TILE * EXACT_KEYS;
    const float *query = yoso_head(&p->query, p->heads, n), *key = yoso_head(&p->key, p->heads, n), *value = yoso_head(&p->value, p->heads, n);
    if (start >= end) return;
    __builtin_memset(sums, 0, sizeof(float) * (end - start) * Vp);
    for (int64_t j = 0; j < p->keys; j += EXACT_KEYS) {
        const int64_t keys = yoso_min(EXACT_KEYS, p->keys - j);
        NAME(copy_columns)(columns, key + j * p->key.token_stride, p->key.token_stride, keys, K);
        NAME(copy_rows)(values, value + j * p->value.token_stride, p->value.token_stride, keys, V);
        for (int64_t i = start; i < end; i += EXACT_TILE) {
            const int64_t rows = yoso_min(EXACT_TILE, end - i);
            NAME(similarities)(weights, query + i * p->query.token_stride, p->query.token_stride, columns, rows, keys, K);
            for (int64_t r = 0; r < rows; r++) NAME(weights)(weights + r * EXACT_KEYS, keys, p->hash_code_len);
            NAME(add_product)(sums + (i - start) * Vp, Vp, weights, EXACT_KEYS, 1, values, Vp, rows, keys, Vp);
        }
    }
    float *out = yoso_head(&p->out, p->heads, n);
    for (int64_t i = start; i < end; i++) __builtin_memcpy(out + i * p->out.token_stride, sums + (i - start) * Vp, sizeof(float) * V);
}

/* Adds padded rows to rows. */
INLINE void NAME(add_rows)(float *to, const float *from, int64_t count, int64_t size) {
    const int64_t padded = NAME(padded)(size);
    for (int64_t r = 0; r < count; r++)
        for (int64_t d = 0; d < size; d++) to[r * size + d] += from[r * padded + d];
}

/* Gradients of some queries of a head, and what they give to the keys and values. */
static void NAME(exact_gradients)(void *context, int64_t number, int64_t slot) {
    const Exact *e = context;
    const Problem *p = e->p;
    const int64_t n = number / e->parts, start = number % e->parts * e->part_queries, end = yoso_min(p->queries, start + e->part_queries);
    const int64_t K = p->size, V = p->value_size, Kp = NAME(padded)(K), Vp = NAME(padded)(V);
    const float half = 0.5f * (float)p->hash_code_len;
    float *at = e->scratch + slot * e->scratch_floats;
    float *key_columns = at, *value_columns = key_columns + EXACT_KEYS * K, *keys_packed = value_columns + EXACT_KEYS * V;
    float *g_keys = keys_packed + EXACT_KEYS * Kp, *g_values = g_keys + EXACT_KEYS * Kp, *weights = g_values + EXACT_KEYS * Vp;
    float *products = weights + EXACT_TILE * EXACT_KEYS, *q = products + EXACT_TILE * EXACT_KEYS, *g = q + EXACT_TILE * Kp;
    float *g_queries = g + EXACT_TILE * Vp;
    const float *query = yoso_head(&p->query, p->heads, n), *key = yoso_head(&p->key, p->heads, n);
    const float *value = yoso_head(&p->value, p->heads, n), *grad = yoso_head(&p->grad, p->heads, n);
    float *g_query = yoso_head(&p->g_query, p->heads, n), *g_key = yoso_head(&p->g_key, p->heads, n), *g_value = yoso_head(&p->g_value, p->heads, n);
    if (e->parts > 1) g_key = e->partial + number * p->keys * (K + V), g_value = g_key + p->keys * K;
    __builtin_memset(g_key, 0, sizeof(float) * p->keys * K);
    __builtin_memset(g_value, 0, sizeof(float) * p->keys * V);
    if (start >= end) return;
    __builtin_memset(g_queries, 0, sizeof(float) * (end - start) * Kp);
    for (int64_t j = 0; j < p->keys; j += EXACT_KEYS) {
        const int64_t keys = yoso_min(EXACT_KEYS, p->keys - j);
        NAME(copy_columns)(key_columns, key + j * p->key.token_stride, p->key.token_stride, keys, K);
        NAME(copy_columns)(value_columns, value + j * p->value.token_stride, p->value.token_stride, keys, V);
        NAME(copy_rows)(keys_packed, key + j * p->key.token_stride, p->key.token_stride, keys, K);
        __builtin_memset(g_keys, 0, sizeof(float) * keys * Kp);
        __builtin_memset(g_values, 0, sizeof(float) * keys * Vp);
        for (int64_t i = start; i < end; i += EXACT_TILE) {
            const int64_t rows = yoso_min(EXACT_TILE, end - i);
            NAME(copy_rows)(q, query + i * p->query.token_stride, p->query.token_stride, rows, K);
            NAME(copy_rows)(g, grad + i * p->grad.token_stride, p->grad.token_stride, rows, V);
            NAME(similarities)(weights, q, Kp, key_columns, rows, keys, K);
            for (int64_t r = 0; r < rows; r++) NAME(weights)(weights + r * EXACT_KEYS, keys, p->hash_code_len);
            NAME(similarities)(products, g, Vp, value_columns, rows, keys, V);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = r * EXACT_KEYS; c < r * EXACT_KEYS + keys; c++) products[c] *= weights[c] * half;
            NAME(add_product)(g_values, Vp, weights, 1, EXACT_KEYS, g, Vp, keys, rows, Vp);
            NAME(add_product)(g_keys, Kp, products, 1, EXACT_KEYS, q, Kp, keys, rows, Kp);
            NAME(add_product)(g_queries + (i - start) * Kp, Kp, products, EXACT_KEYS, 1, keys_packed, Kp, rows, keys, Kp);
        }
        NAME(add_rows)(g_key + j * K, g_keys, keys, K);
        NAME(add_rows)(g_value + j * V, g_values, keys, V);
    }
    for (int64_t i = start; i < end; i++) __builtin_memcpy(g_query + i * K, g_queries + (i - start) * Kp, sizeof(float) * K);
}

/* Adds up what the parts of one head gave to its keys and values. */
static void NAME(exact_add_parts)(void *context, int64_t n, int64_t slot) {
    const Exact *e = context;
    const Problem *p = e->p;
    const int64_t k_floats = p->keys * p->size, v_floats = p->keys * p->value_size;
    float *g_key = yoso_head(&p->g_key, p->heads, n), *g_value = yoso_head(&p->g_value, p->heads, n);
    (void)slot;
    __builtin_memset(g_key, 0, sizeof(float) * k_floats);
    __builtin_memset(g_value, 0, sizeof(float) * v_floats);
    for (int64_t part = 0; part < e->parts; part++) {
        const float *from = e->partial + (n * e->parts + part) * (k_floats + v_floats);
        for (int64_t i = 0; i < k_floats; i++) g_key[i] += from[i];
        for (int64_t i = 0; i < v_floats; i++) g_value[i] += from[k_floats + i];
    }
}

static int NAME(exact)(const Problem *p, int backward) {
    const int64_t all = p->texts * p->heads, K = p->size, V = p->value_size, Kp = NAME(padded)(K), Vp = NAME(padded)(V);
    Exact e = {.p = p, .parts = backward ? yoso_blocks(p->threads, all) : yoso_blocks(p->queries, EXACT_QUERIES)};
    e.part_queries = yoso_blocks(yoso_blocks(p->queries, e.parts), 6) * 6; /* whole tiles of six rows */
    const int64_t forward = EXACT_KEYS * (K + Vp + EXACT_TILE) + e.part_queries * Vp;
    const int64_t gradients = EXACT_KEYS * (K + V + 2 * Kp + Vp + 2 * EXACT_TILE) + EXACT_TILE * (Kp + Vp) + e.part_queries * Kp;
    e.scratch_floats = yoso_blocks(backward ? gradients : forward, 1024) * 1024 + 64;
    e.scratch = yoso_allocate(p->threads * e.scratch_floats * (int64_t)sizeof(float));
    if (backward && e.parts > 1) e.partial = yoso_allocate(all * e.parts * p->keys * (K + V) * (int64_t)sizeof(float));
    const int enough = e.scratch && (!backward || e.parts == 1 || e.partial);
    if (enough) {
        yoso_parallel(p, all * e.parts, backward ? NAME(exact_gradients) : NAME(exact_queries), &e);
        if (e.partial) yoso_parallel(p, all, NAME(exact_add_parts), &e);
    }
    yoso_free(e.scratch);
    yoso_free(e.partial);
    return enough ? YOSO_OK : YOSO_OUT_OF_MEMORY;
}

static int NAME(exact_forward)(const Problem *p) { return NAME(exact)(p, 0); }
static int NAME(exact_backward)(const Problem *p) { return NAME(exact)(p, 1); }
