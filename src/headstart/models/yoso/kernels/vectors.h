/* Vector types and small matrix products. Included once for every instruction set, with LANES and NAME(x) defined; no include guard. */

#define VF NAME(Floats)
#define VFU NAME(UnalignedFloats)
#define VI NAME(Ints)

typedef float VF __attribute__((vector_size(4 * LANES)));
typedef float VFU __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(4 * LANES)));

#define LOAD(from) (*(const VFU *)(from))
#define STORE(to, x) (*(VFU *)(to) = (x))
#define INLINE static inline __attribute__((always_inline))

INLINE VF NAME(square_root)(VF x) {
#if LANES == 16
    return (VF)_mm512_sqrt_ps((__m512)x);
#elif LANES == 8
    return (VF)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE__)
    return (VF)_mm_sqrt_ps((__m128)x);
#elif defined(__aarch64__)
    return (VF)vsqrtq_f32((float32x4_t)x);
#else
    for (int lane = 0; lane < LANES; lane++) x[lane] = __builtin_sqrtf(x[lane]);
    return x;
#endif
}

/* Floats of a padded row: rows of scratch buffers are whole vectors, with zeros behind the last element. */
INLINE int64_t NAME(padded)(int64_t size) { return yoso_blocks(size, LANES) * LANES; }

/* Does something for row r < R and column c < C of a tile. Each element is a variable of its own, s_rc: GCC leaves arrays in memory. */
#define FOR_COLUMNS(DO, r)                 \
    {                                      \
        DO(r, 0)                           \
        if (C > 1) { DO(r, 1) }            \
        if (C > 2) { DO(r, 2) DO(r, 3) }   \
    }
#define FOR_TILE(DO)                       \
    FOR_COLUMNS(DO, 0)                     \
    if (R > 1) FOR_COLUMNS(DO, 1)          \
    if (R > 2) FOR_COLUMNS(DO, 2)          \
    if (R > 3) FOR_COLUMNS(DO, 3)          \
    if (R > 4) FOR_COLUMNS(DO, 4)          \
    if (R > 5) FOR_COLUMNS(DO, 5)
#define FOUR(r) s_##r##0 = {0}, s_##r##1 = {0}, s_##r##2 = {0}, s_##r##3 = {0}

/* out[r][:] += sum over t of x[r * row_step + t * depth_step] * y[t][:], for R rows and C vectors of columns held in registers. */
INLINE void NAME(product_tile)(float *out, int64_t out_step, const float *x, int64_t row_step, int64_t depth_step, const float *y,
                               int64_t y_step, int64_t depth, const int R, const int C) {
    VF FOUR(0), FOUR(1), FOUR(2), FOUR(3), FOUR(4), FOUR(5);
#define READ(r, c) s_##r##c = LOAD(out + r * out_step + c * LANES);
    FOR_TILE(READ)
    for (int64_t t = 0; t < depth; t++, x += depth_step, y += y_step) {
        const VF y_0 = LOAD(y), y_1 = LOAD(y + (C > 1 ? LANES : 0)), y_2 = LOAD(y + (C > 2 ? 2 * LANES : 0));
        const VF y_3 = LOAD(y + (C > 2 ? 3 * LANES : 0));
#define ADD(r, c) s_##r##c += y_##c * x[r * row_step];
        FOR_TILE(ADD)
    }
#define WRITE(r, c) STORE(out + r * out_step + c * LANES, s_##r##c);
    FOR_TILE(WRITE)
#undef READ
#undef ADD
#undef WRITE
}

/* The same for any number of rows, and of columns that is a whole number of vectors. */
static void NAME(add_product)(float *out, int64_t out_step, const float *x, int64_t row_step, int64_t depth_step, const float *y,
                              int64_t y_step, int64_t rows, int64_t depth, int64_t columns) {
#define TILE(R, C) NAME(product_tile)(out + r * out_step + c, out_step, x + r * row_step, row_step, depth_step, y + c, y_step, depth, R, C)
#define ROWS(C)                                   \
    do {                                          \
        int64_t r = 0;                            \
        for (; r + 6 <= rows; r += 6) TILE(6, C); \
        switch (rows - r) {                       \
            case 5: TILE(5, C); break;            \
            case 4: TILE(4, C); break;            \
            case 3: TILE(3, C); break;            \
            case 2: TILE(2, C); break;            \
            case 1: TILE(1, C); break;            \
        }                                         \
    } while (0)
    int64_t c = 0;
#if LANES == 16 /* 32 registers: 6 x 4 sums, 4 columns */
    for (; c + 4 * LANES <= columns; c += 4 * LANES) ROWS(4);
#endif
    for (; c + 2 * LANES <= columns; c += 2 * LANES) ROWS(2); /* 16 registers: 6 x 2 sums, 2 columns */
    for (; c < columns; c += LANES) ROWS(1);
#undef ROWS
#undef TILE
}

/* Lane i of the result is the sum of the lanes of sum[i]: each step adds neighbours of two vectors and interleaves them. */
INLINE VF NAME(lane_sums)(const VF *sum) {
#if LANES == 16
#define STEP_1(a, b)                                                          \
    (SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) + \
     SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#define STEP_2(a, b)                                                          \
    (SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) + \
     SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
#define STEP_3(a, b)                                                          \
    (SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) + \
     SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
#define STEP_4(a, b)                                                          \
    (SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +   \
     SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    const VF a = STEP_2(STEP_1(sum[0], sum[1]), STEP_1(sum[2], sum[3])), b = STEP_2(STEP_1(sum[4], sum[5]), STEP_1(sum[6], sum[7]));
    const VF c = STEP_2(STEP_1(sum[8], sum[9]), STEP_1(sum[10], sum[11]));
    const VF d = STEP_2(STEP_1(sum[12], sum[13]), STEP_1(sum[14], sum[15]));
    const VF ab = STEP_3(a, b), cd = STEP_3(c, d);
    return STEP_4(ab, cd);
#undef STEP_4
#elif LANES == 8
#define STEP_1(a, b) (SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15))
#define STEP_2(a, b) (SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15))
#define STEP_3(a, b) (SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15))
    const VF a = STEP_2(STEP_1(sum[0], sum[1]), STEP_1(sum[2], sum[3])), b = STEP_2(STEP_1(sum[4], sum[5]), STEP_1(sum[6], sum[7]));
    return STEP_3(a, b);
#else
#define STEP_1(a, b) (SHUFFLE(a, b, 0, 4, 2, 6) + SHUFFLE(a, b, 1, 5, 3, 7))
#define STEP_2(a, b) (SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7))
#define STEP_3(a, b)
    const VF a = STEP_1(sum[0], sum[1]), b = STEP_1(sum[2], sum[3]);
    return STEP_2(a, b);
#endif
#undef STEP_1
#undef STEP_2
#undef STEP_3
}

/* out[i][j] = x[i] . y[j] for padded rows. Both numbers of rows are rounded up to DOT_ROWS and 4, so the buffers must be as long. */
#define DOT_ROWS (LANES / 4)
static void NAME(dot_products)(float *out, int64_t out_step, const float *x, int64_t x_step, const float *y, int64_t y_step, int64_t rows,
                               int64_t columns, int64_t depth) {
    for (int64_t i = 0; i < rows; i += DOT_ROWS)
        for (int64_t j = 0; j < columns; j += 4) {
            VF sum[LANES];
#pragma GCC unroll 16
            for (int s = 0; s < LANES; s++) sum[s] = (VF){0};
            for (int64_t t = 0; t < depth; t += LANES) {
                VF right[4];
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) right[c] = LOAD(y + (j + c) * y_step + t);
#pragma GCC unroll 4
                for (int r = 0; r < DOT_ROWS; r++) {
                    const VF left = LOAD(x + (i + r) * x_step + t);
#pragma GCC unroll 4
                    for (int c = 0; c < 4; c++) sum[r * 4 + c] += left * right[c];
                }
            }
            float dots[LANES] __attribute__((aligned(64)));
            *(VF *)dots = NAME(lane_sums)(sum);
#pragma GCC unroll 4
            for (int r = 0; r < DOT_ROWS; r++) __builtin_memcpy(out + (i + r) * out_step + j, dots + r * 4, 16);
        }
}
