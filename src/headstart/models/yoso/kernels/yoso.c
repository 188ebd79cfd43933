/* YOSO's attention on a CPU: the entry points, the choice of the instruction set, and the threads.
 *
 * Plain C with the vector extensions of GCC and Clang. No Python and no PyTorch header is needed, so one build serves every
 * version of both; cpu.py calls it through ctypes and checks every size before.
 */
#define _GNU_SOURCE
#include "yoso.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define EXPORT __attribute__((visibility("default")))

void yoso_use_huge_pages(void *memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)1 << 21, first = ((uintptr_t)memory + page - 1) & ~(page - 1);
    const uintptr_t end = ((uintptr_t)memory + (uintptr_t)bytes) & ~(page - 1);
    if (end > first) madvise((void *)first, end - first, MADV_HUGEPAGE); /* a wish: where it is not granted, all goes on */
#else
    (void)memory, (void)bytes;
#endif
}

void *yoso_allocate(int64_t bytes) {
    void *memory = aligned_alloc(64, (size_t)(yoso_blocks(yoso_max(bytes, 1), 64) * 64));
    if (memory) yoso_use_huge_pages(memory, bytes);
    return memory;
}
void yoso_free(void *memory) { free(memory); }

/* Four lanes: NEON on ARM, SSE on x86, scalar instructions where a machine has no vectors. */
#define LANES 4
#define NAME(x) x##_generic
#include "body.h"
#undef LANES
#undef NAME

#if defined(__x86_64__)
#define HAS_X86 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define LANES 8
#define NAME(x) x##_avx2
#include "body.h"
#undef LANES
#undef NAME
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif
#define LANES 16
#define NAME(x) x##_avx512
#include "body.h"
#undef LANES
#undef NAME
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* Threads. All pieces are taken from one counter. */
typedef struct {
    Run run;
    void *context;
    int64_t count;
    atomic_llong next;
    atomic_int slots;
} Queue;

static void take_pieces(void *data) {
    Queue *queue = data;
    const int slot = atomic_fetch_add(&queue->slots, 1);
    for (int64_t number; (number = atomic_fetch_add(&queue->next, 1)) < queue->count;) queue->run(queue->context, number, slot);
}

static void *thread_start(void *data) {
    take_pieces(data);
    return 0;
}

static pid_t loaded_by;
__attribute__((constructor)) static void remember_process(void) { loaded_by = getpid(); }

void yoso_parallel(const Problem *problem, int64_t count, Run run, void *context) {
    Queue queue = {.run = run, .context = context, .count = count};
    const int64_t threads = yoso_min(problem->threads, count);
    if (threads <= 1) {
        take_pieces(&queue);
        return;
    }
    /* PyTorch's own threads are awake and waiting for work; ours would have to share the cores with them. But after a fork
     * they no longer exist, and OpenMP would wait for them for ever. */
    if (problem->parallel && getpid() == loaded_by) {
        void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
        *(void **)&parallel = problem->parallel;
        parallel(take_pieces, &queue, (unsigned)threads, 0);
        return;
    }
    pthread_t *others = malloc(sizeof(pthread_t) * (size_t)(threads - 1));
    int64_t started = 0;
    while (others && started < threads - 1 && !pthread_create(&others[started], 0, thread_start, &queue)) started++;
    take_pieces(&queue);
    for (int64_t i = 0; i < started; i++) pthread_join(others[i], 0);
    free(others);
}

/* Instruction sets by number: 0 generic, 1 AVX2, 2 AVX-512. */
static const Kernels *kernels_of(int set) {
#if HAS_X86
    __builtin_cpu_init();
    if (set == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return &kernels_avx512;
    if (set == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kernels_avx2;
#endif
    return set == 0 ? &kernels_generic : 0;
}

EXPORT int yoso_has_instruction_set(int set) { return kernels_of(set) != 0; }
EXPORT int64_t yoso_problem_bytes(void) { return sizeof(Problem); }
EXPORT int yoso_sampled_forward(const Problem *p, int set) { return kernels_of(set)->sampled_forward(p); }
EXPORT int yoso_sampled_backward(const Problem *p, int set) { return kernels_of(set)->sampled_backward(p); }
EXPORT int yoso_exact_forward(const Problem *p, int set) { return kernels_of(set)->exact_forward(p); }
EXPORT int yoso_exact_backward(const Problem *p, int set) { return kernels_of(set)->exact_backward(p); }
