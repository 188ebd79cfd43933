/* Runs one entry point of the YOSO kernel outside Python, for AddressSanitizer, valgrind and emulated processors.
 *
 *     harness NAME INSTRUCTION_SET THREADS < inputs > outputs
 *
 * Inputs, as one binary stream: eleven int64 (texts, heads, queries, keys, size, value_size, hash_code_len, num_hash, transforms,
 * transform_size, fast), then query, key, value, grad in float32, then the projections (float32, or int8 signs).
 * Outputs: one float32 tensor for "…_forward", three for "…_backward". Linked with yoso.c.
 */
#include "yoso.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int yoso_has_instruction_set(int set);
int yoso_sampled_forward(const Problem *p, int set);
int yoso_sampled_backward(const Problem *p, int set);
int yoso_exact_forward(const Problem *p, int set);
int yoso_exact_backward(const Problem *p, int set);

static void *take(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory || fread(memory, 1, bytes, stdin) != bytes) exit(3);
    return memory;
}

static Tensor tensor(float *data, int64_t heads, int64_t tokens, int64_t size) {
    return (Tensor){data, heads * tokens * size, tokens * size, size};
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    const int set = atoi(arguments[2]);
    if (!yoso_has_instruction_set(set)) return 4;
    int64_t *n = take(11 * sizeof(int64_t));
    Problem p = {.texts = n[0], .heads = n[1], .queries = n[2], .keys = n[3], .size = n[4], .value_size = n[5],
                 .hash_code_len = n[6], .num_hash = n[7], .threads = atoi(arguments[3]), .scratch_limit = 1};
    const int64_t rows = p.texts * p.heads;
    const int64_t floats[4] = {rows * p.queries * p.size, rows * p.keys * p.size, rows * p.keys * p.value_size, rows * p.queries * p.value_size};
    float *inputs[4], *outputs[4];
    for (int i = 0; i < 4; i++) {
        inputs[i] = take(sizeof(float) * (size_t)floats[i]);
        outputs[i] = malloc(sizeof(float) * (size_t)floats[i]);
    }
    void *projections;
    if (n[10]) {
        projections = take((size_t)(rows * 3 * n[8] * n[9]));
        p.signs = projections, p.transforms = n[8], p.transform_size = n[9];
    } else {
        projections = take(sizeof(float) * (size_t)(rows * p.size * p.num_hash * p.hash_code_len));
        p.dense = projections;
    }
    p.query = tensor(inputs[0], p.heads, p.queries, p.size), p.g_query = tensor(outputs[0], p.heads, p.queries, p.size);
    p.key = tensor(inputs[1], p.heads, p.keys, p.size), p.g_key = tensor(outputs[1], p.heads, p.keys, p.size);
    p.value = tensor(inputs[2], p.heads, p.keys, p.value_size), p.g_value = tensor(outputs[2], p.heads, p.keys, p.value_size);
    p.grad = tensor(inputs[3], p.heads, p.queries, p.value_size), p.out = tensor(outputs[3], p.heads, p.queries, p.value_size);
    const int backward = strstr(arguments[1], "backward") != 0, exact = strstr(arguments[1], "exact") != 0;
    int (*run)(const Problem *, int) = exact ? (backward ? yoso_exact_backward : yoso_exact_forward)
                                             : (backward ? yoso_sampled_backward : yoso_sampled_forward);
    if (run(&p, set)) return 5;
    for (int i = backward ? 0 : 3; i < (backward ? 3 : 4); i++)
        if (fwrite(outputs[i], sizeof(float), (size_t)floats[i], stdout) != (size_t)floats[i]) return 6;
    for (int i = 0; i < 4; i++) free(inputs[i]), free(outputs[i]);
    free(projections);
    free(n);
    return 0;
}
