/* What the parts of the CPU kernel share: tensors, arguments, threads.
 *
 * Everything here is float32. Letters as in the Python files: N rows of heads (texts x heads), L query tokens, S key tokens,
 * K head size of queries and keys, V head size of values, M hashes, tau bits in a hash.
 */
#ifndef HEADSTART_YOSO_H
#define HEADSTART_YOSO_H

#include <stdint.h>

/* A (texts, heads, tokens, size) tensor whose last dimension is contiguous. Strides count floats. */
typedef struct {
    float *data;
    int64_t text_stride, head_stride, token_stride;
} Tensor;

typedef struct {
    int64_t texts, heads, queries, keys, size, value_size;
    Tensor query, key, value, grad;       /* inputs; grad is read by the backward functions only */
    Tensor out, g_query, g_key, g_value;  /* outputs: out of the forward functions, the others of the backward functions */
    int64_t hash_code_len, num_hash;
    /* One of these two is NULL. */
    const float *dense;   /* (N, K, M * tau) */
    const int8_t *signs;  /* (N, 3, transforms, transform_size) */
    int64_t transforms, transform_size;
    int64_t threads;
    int64_t scratch_limit; /* bytes of codes that may be alive; at least what `threads` heads need is always used */
    int64_t normalize;     /* whether rows of the sampled forward's output are scaled to length one (those of zeros stay) */
    void *parallel;        /* GOMP_parallel of the OpenMP runtime that PyTorch uses, or NULL for threads of our own */
} Problem;

/* Returned by every entry point. */
enum { YOSO_OK = 0, YOSO_OUT_OF_MEMORY = 1 };

/* The functions of one instruction set. */
typedef struct {
    int (*sampled_forward)(const Problem *);
    int (*sampled_backward)(const Problem *);
    int (*exact_forward)(const Problem *);
    int (*exact_backward)(const Problem *);
} Kernels;

/* A piece of work: `number` says which piece, `slot` which thread's scratch memory it may use. */
typedef void (*Run)(void *context, int64_t number, int64_t slot);

/* Runs every piece below `count` once, in any order, on up to `problem->threads` threads, and returns when all are done. */
void yoso_parallel(const Problem *problem, int64_t count, Run run, void *context);

/* Four floats, which every machine with vectors has. */
typedef float Four __attribute__((vector_size(16)));
typedef float UnalignedFour __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t FourInts __attribute__((vector_size(16)));

/* Elements of two vectors by number. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define SHUFFLE_4(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (VI){__VA_ARGS__})
#define SHUFFLE_4(a, b, ...) __builtin_shuffle(a, b, (FourInts){__VA_ARGS__})
#endif

/* Memory at a cache line, in huge pages where it is large; or NULL. */
void *yoso_allocate(int64_t bytes);
void yoso_free(void *memory);

/* Asks for huge pages, of which a text of 65,536 tokens needs a few hundred instead of a hundred thousand. */
void yoso_use_huge_pages(void *memory, int64_t bytes);

static inline int64_t yoso_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t yoso_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t yoso_blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* The first float of row n's head. */
static inline float *yoso_head(const Tensor *tensor, int64_t heads, int64_t n) {
    return tensor->data + (n / heads) * tensor->text_stride + (n % heads) * tensor->head_stride;
}

#endif
