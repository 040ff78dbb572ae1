// How many multiply-adds a second the processor can do at all: twelve sums in registers, nothing from memory. Threads run at once.
#include <pthread.h>
#include <time.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__x86_64__)
#define HOLD(v) asm volatile("" : "+x"(v))
#if defined(__AVX512F__)
#undef HOLD
#define HOLD(v) asm volatile("" : "+v"(v))
#endif
#else
#define HOLD(v) asm volatile("" : "+w"(v))
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));

static double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct Task {
    double seconds, rate;
};

static void *run(void *argument) {
    Task *task = (Task *)argument;
    vec sum[12] = {}, x = vec{} + 1.0f;
    HOLD(x);
    const double begin = now();
    double end = begin, count = 0;
    while (end - begin < task->seconds) {
        for (int i = 0; i < 10000; i++) {
#pragma GCC unroll 12
            for (int j = 0; j < 12; j++) {
                sum[j] = sum[j] + x * x;
                HOLD(sum[j]);
            }
        }
        count += 12.0 * 10000 * LANES;
        end = now();
    }
    task->rate = count / (end - begin) * 1e-9;
    return nullptr;
}

// Billions of multiply-adds a second of `threads` threads (at most 64) together.
extern "C" double peak(int threads, double seconds) {
    pthread_t thread[64];
    Task task[64];
    double total = 0;
    if (threads > 64) return 0;
    for (int i = 0; i < threads; i++) {
        task[i] = {seconds, 0};
        if (pthread_create(&thread[i], nullptr, run, &task[i])) return 0;
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(thread[i], nullptr);
        total += task[i].rate;
    }
    return total;
}
