/* Hash codes. Included once for every instruction set; no include guard. Tokens lie in the lanes of a vector. */

/* x[token][:] for `count` tokens, turned to columns[element], LANES tokens each; lanes and elements beyond the end are zero. */
static void NAME(to_lanes)(const float *x, int64_t token_step, int64_t count, int64_t size, VF *columns, int64_t column_step, int64_t all) {
    float *to = (float *)columns;
    const int64_t step = column_step * LANES, whole = count < LANES ? 0 : size / 4 * 4;
    for (int64_t d = 0; d < whole; d += 4)
        for (int64_t token = 0; token < LANES; token += 4) { /* 4 tokens x 4 elements */
            const float *from = x + token * token_step + d;
            const Four a = *(const UnalignedFour *)from, b = *(const UnalignedFour *)(from + token_step);
            const Four c = *(const UnalignedFour *)(from + 2 * token_step), e = *(const UnalignedFour *)(from + 3 * token_step);
            const Four ac = SHUFFLE_4(a, c, 0, 4, 1, 5), be = SHUFFLE_4(b, e, 0, 4, 1, 5);
            const Four ac_2 = SHUFFLE_4(a, c, 2, 6, 3, 7), be_2 = SHUFFLE_4(b, e, 2, 6, 3, 7);
            *(Four *)(to + d * step + token) = SHUFFLE_4(ac, be, 0, 4, 1, 5);
            *(Four *)(to + (d + 1) * step + token) = SHUFFLE_4(ac, be, 2, 6, 3, 7);
            *(Four *)(to + (d + 2) * step + token) = SHUFFLE_4(ac_2, be_2, 0, 4, 1, 5);
            *(Four *)(to + (d + 3) * step + token) = SHUFFLE_4(ac_2, be_2, 2, 6, 3, 7);
        }
    for (int64_t d = whole; d < all; d++) {
        columns[d * column_step] = (VF){0};
        for (int64_t token = 0; d < size && token < count; token++) to[d * step + token] = x[token * token_step + d];
    }
}

/* log2(R) steps of the Walsh-Hadamard transform, from distance `step` on, after flipping the signs in `before`, and, where `between`
 * is given, the same steps again after flipping those signs. */
INLINE void NAME(hadamard_pass)(const VF *from, VF *to, const int32_t *before, const int32_t *between, int64_t size, int64_t step,
                                const int R) {
#define BUTTERFLIES                                          \
    _Pragma("GCC unroll 3") for (int half = 1; half < R; half *= 2) \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)  \
            if (!(r & half)) {                               \
                const VF a = part[r], b = part[r + half];    \
                part[r] = a + b;                             \
                part[r + half] = a - b;                      \
            }
    for (int64_t block = 0; block < size; block += step * R)
        for (int64_t i = block; i < block + step; i++) {
            VF part[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) part[r] = before ? (VF)((VI)from[i + r * step] ^ before[i + r * step]) : from[i + r * step];
            BUTTERFLIES
            if (between) {
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) part[r] = (VF)((VI)part[r] ^ between[i + r * step]);
                BUTTERFLIES
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) to[i + r * step] = part[r];
        }
#undef BUTTERFLIES
}

/* Pass number i of a transform: radix 8 as far as it goes. Passes of one transform may be made in any order. */
static void NAME(pass)(const VF *from, VF *to, const int32_t *before, const int32_t *between, int64_t size, int i) {
    const int64_t step = (int64_t)1 << (3 * i), radix = yoso_min(8, size / step);
#define PASS(R)                                                                                         \
    do {                                                                                                \
        if (before && between) NAME(hadamard_pass)(from, to, before, between, size, step, R);           \
        else if (before) NAME(hadamard_pass)(from, to, before, 0, size, step, R);                       \
        else if (between) NAME(hadamard_pass)(from, to, 0, between, size, step, R);                     \
        else NAME(hadamard_pass)(from, to, 0, 0, size, step, R);                                        \
    } while (0)
    if (radix == 8) PASS(8);
    else if (radix == 4) PASS(4);
    else if (radix == 2) PASS(2);
    else PASS(1);
#undef PASS
}

/* y = H D3 H D2 H D1 x, with the signs D given as bits to flip. `size` is a power of two. The second transform makes its passes in the
 * opposite order, so that it shares its first pass over the memory with the first transform's last, and its last with the third's first. */
static void NAME(transform)(const VF *x, VF *y, const int32_t *flip_1, const int32_t *flip_2, const int32_t *flip_3, int64_t size) {
    int last = 0;
    while ((int64_t)8 << (3 * last) < size) last++;
    if (!last) {
        NAME(pass)(x, y, flip_1, flip_2, size, 0);
        NAME(pass)(y, y, flip_3, 0, size, 0);
        return;
    }
    for (int i = 0; i <= last; i++) NAME(pass)(i ? y : x, y, i ? 0 : flip_1, i == last ? flip_2 : 0, size, i);
    for (int i = last - 1; i >= 0; i--) NAME(pass)(y, y, 0, i ? 0 : flip_3, size, i);
    for (int i = 1; i <= last; i++) NAME(pass)(y, y, 0, 0, size, i);
}

INLINE void NAME(store_codes)(uint16_t *to, VI code, int64_t count) {
    for (int64_t token = 0; token < count; token++) to[token] = (uint16_t)code[token];
}

/* Codes of up to LANES tokens by the fast hash. codes[h * code_step + token]. `flips` is (3, transforms, size). */
static void NAME(fast_codes)(const Problem *p, const int32_t *flips, const float *x, int64_t token_step, int64_t count, uint16_t *codes,
                             int64_t code_step, VF *scratch) {
    const int64_t size = p->transform_size, bits = p->hash_code_len;
    VF *columns = scratch, *y = scratch + size;
    NAME(to_lanes)(x, token_step, count, p->size, columns, 1, size);
    for (int64_t part = 0, h = 0; part < p->transforms; part++) {
        const int32_t *flip = flips + part * size;
        NAME(transform)(columns, y, flip, flip + p->transforms * size, flip + 2 * p->transforms * size, size);
        for (int64_t first = 0; first + bits <= size && h < p->num_hash; first += bits, h++) {
            VI code = {0};
            for (int64_t b = bits - 1; b >= 0; b--) code = code + code - (y[first + b] > 0);
            NAME(store_codes)(codes + h * code_step, code, count);
        }
    }
}

/* Codes of up to GROUPS * LANES tokens by dense projections (K, M * tau). */
#define GROUPS 8
static void NAME(dense_codes)(const Problem *p, const float *directions, const float *x, int64_t token_step, int64_t count, uint16_t *codes,
                              int64_t code_step, VF *scratch) {
    const int64_t all_bits = p->num_hash * p->hash_code_len;
    for (int64_t g = 0; g < GROUPS; g++) {
        const int64_t some = yoso_max(0, yoso_min(LANES, count - g * LANES));
        NAME(to_lanes)(x + (some ? g * LANES * token_step : 0), token_step, some, p->size, scratch + g, GROUPS, p->size);
    }
    for (int64_t h = 0; h < p->num_hash; h++) {
        VI code[GROUPS] = {{0}};
        for (int64_t b = p->hash_code_len - 1; b >= 0; b--) {
            VF sum[GROUPS] = {{0}};
            const float *direction = directions + h * p->hash_code_len + b;
            for (int64_t d = 0; d < p->size; d++)
#pragma GCC unroll 8
                for (int g = 0; g < GROUPS; g++) sum[g] += scratch[d * GROUPS + g] * direction[d * all_bits];
#pragma GCC unroll 8
            for (int g = 0; g < GROUPS; g++) code[g] = code[g] + code[g] - (sum[g] > 0);
        }
        for (int g = 0; g < GROUPS; g++)
            if (g * LANES < count) NAME(store_codes)(codes + h * code_step + g * LANES, code[g], yoso_min(LANES, count - g * LANES));
    }
}
