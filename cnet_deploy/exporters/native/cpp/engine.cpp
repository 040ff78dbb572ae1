// The C interface: handles, their memory and their threads. Compiled once, for the baseline, so that it can refuse on any processor.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "cnet.h"
#include "constants.h"
#include "cpu.hpp"
#include "kernels.h"
#include "team.h"

namespace cnet {
extern __attribute__((visibility("hidden"))) const Kernels *const carried[];  // in plan.cpp: the best first
extern __attribute__((visibility("hidden"))) const int carried_count;
}  // namespace cnet

using namespace cnet;

namespace {

// In a handle that may be used. It differs from library to library, so that each refuses the handles of others.
uint64_t alive() { return 0x636e65742d6f6b21 ^ (uint64_t)(uintptr_t)&plan; }
constexpr size_t huge_page = 2u << 20;
constexpr size_t line_bytes = 4 * line;

}  // namespace

struct cnet_model {
    uint64_t magic = 0;
    const Kernels *kernels = nullptr;
    pid_t process = 0;
    pthread_mutex_t turn;
    Team team;
    uint32_t phase = 2;  // of the next inference
    Memory memory{};
    void *mapped = nullptr;
    size_t mapped_bytes = 0;
    int workers = 0;
    pthread_t worker[most_threads];
};

namespace {

struct Start {
    cnet_model *model;
    int thread;
};

size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }

// What the head keeps between its phases.
size_t feature_floats() {
#if CNET_V2
    return rounded((size_t)plan.hidden.features, line) + rounded((size_t)plan.hidden.excited, line) + (size_t)plan.hidden.outputs + line;
#else
    return (size_t)plan.head.features;
#endif
}

// Bytes of a piece of memory: whole cache lines, and one between it and the next.
size_t piece_bytes(size_t floats) { return rounded(floats, line) * 4 + line_bytes; }

// All memory in one piece, on huge pages where the system has them: planes lie far apart, and with small pages each would miss the TLB.
// A debug build allocates piece by piece, so that a sanitizer sees where each ends.
bool allocate(cnet_model &m, int threads) {
    Memory &memory = m.memory;
    memory.scratch_floats = m.kernels->scratch_floats(plan);
    const size_t floats[] = {(size_t)plan.activations, (size_t)plan.between, (size_t)feature_floats(),
                             (size_t)memory.scratch_floats * (size_t)threads};
    float **const pieces[] = {&memory.activations, &memory.between, &memory.features, &memory.scratch};
#ifdef CNET_DEBUG
    for (int i = 0; i < 4; i++) {
        void *piece = nullptr;
        if (posix_memalign(&piece, line_bytes, piece_bytes(floats[i]))) return false;
        *pieces[i] = (float *)piece;
    }
#else
    size_t bytes = 0;
    for (const size_t n : floats) bytes += piece_bytes(n);
    m.mapped_bytes = rounded(bytes, huge_page) + huge_page;
    m.mapped = mmap(nullptr, m.mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m.mapped == MAP_FAILED) return false;
    char *at = (char *)rounded((size_t)m.mapped, huge_page);
    madvise(at, m.mapped_bytes - huge_page, MADV_HUGEPAGE);  // may fail: it only makes runs faster
    for (int i = 0; i < 4; i++) {
        *pieces[i] = (float *)(void *)at;
        at += piece_bytes(floats[i]);
    }
#endif
    return true;
}

void free_memory(cnet_model &m) {
#ifdef CNET_DEBUG
    free(m.memory.activations);
    free(m.memory.between);
    free(m.memory.features);
    free(m.memory.scratch);
#else
    if (m.mapped && m.mapped != MAP_FAILED) munmap(m.mapped, m.mapped_bytes);
#endif
}

void *work(void *argument) {
    const Start start = *(Start *)argument;
    free(argument);
    cnet_model &m = *start.model;
    Team &team = m.team;
    for (uint32_t seen = 1;;) {
        seen = wait_for_start(team, seen);
        if (team.stop.load(std::memory_order_acquire)) return nullptr;
        Member member{&team, start.thread, seen};
        m.kernels->run(plan, m.memory, member, team.image.load(std::memory_order_relaxed), team.logits.load(std::memory_order_relaxed));
    }
}

// Workers block all signals, which are left to the caller's threads.
bool start_workers(cnet_model &m, int threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; m.workers + 1 < threads; m.workers++) {
        Start *start = (Start *)malloc(sizeof(Start));
        if (!start) break;
        *start = {&m, m.workers + 1};
        if (pthread_create(&m.worker[m.workers], nullptr, work, start)) {
            free(start);
            break;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return m.workers + 1 == threads;
}

// `own`: whether the threads are in this process.
void release(cnet_model *m, bool own) {
    if (own) {
        dismiss(m->team);
        for (int i = 0; i < m->workers; i++) pthread_join(m->worker[i], nullptr);
        pthread_mutex_destroy(&m->turn);
    }
    free_memory(*m);
    m->magic = 0;
#ifndef CNET_DEBUG
    free(m);  // a debug build keeps the handle, so that its use after this is recognised
#endif
}

int processors() {
    cpu_set_t set;
    // The call fails where there are more processors than a cpu_set_t holds (1024): there, all that are online count.
    const int count = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    return count < 1 ? 1 : count > most_threads ? most_threads : count;
}

cnet_status create(const Kernels *kernels, int threads, cnet_model **out) {
    if (threads == 0) threads = processors();
    void *place = nullptr;
    if (posix_memalign(&place, alignof(cnet_model), sizeof(cnet_model))) return CNET_NO_MEMORY;
    cnet_model *m = new (place) cnet_model;
    m->kernels = kernels;
    m->process = getpid();
    m->team.size = threads;
    pthread_mutex_init(&m->turn, nullptr);
    cnet_status status = CNET_OK;
    if (!allocate(*m, threads)) status = CNET_NO_MEMORY;
    else if (!start_workers(*m, threads)) status = CNET_NO_THREAD;
    if (status != CNET_OK) {
        release(m, true);
        return status;
    }
    m->magic = alive();
    *out = m;
    return CNET_OK;
}

cnet_status check_new(int threads, cnet_model **model) {
    if (!model) return CNET_NULL_POINTER;
    *model = nullptr;
    return threads < 0 || threads > CNET_MAX_THREADS ? CNET_BAD_THREADS : CNET_OK;
}

}  // namespace

extern "C" {

cnet_status cnet_version(uint32_t *version) {
    if (!version) return CNET_NULL_POINTER;
    *version = CNET_API_VERSION;
    return CNET_OK;
}

cnet_status cnet_describe(const char **json) {
    if (!json) return CNET_NULL_POINTER;
    *json = plan.description;
    return CNET_OK;
}

cnet_status cnet_shape(size_t *channels, size_t *height, size_t *width, size_t *classes) {
    if (!channels || !height || !width || !classes) return CNET_NULL_POINTER;
    *channels = CNET_CHANNELS;
    *height = (size_t)plan.height;
    *width = (size_t)plan.width;
    *classes = (size_t)plan.head.classes;
    return CNET_OK;
}

cnet_status cnet_class_name(size_t number, const char **name) {
    if (!name) return CNET_NULL_POINTER;
    if (number >= (size_t)plan.head.classes) return CNET_BAD_CLASS;
    *name = plan.class_name ? plan.class_name[number] : "";
    return CNET_OK;
}

cnet_status cnet_create(int threads, cnet_model **model) {
    const cnet_status status = check_new(threads, model);
    if (status != CNET_OK) return status;
    for (int i = 0; i < carried_count; i++)
        if (supported(carried[i]->name)) return create(carried[i], threads, model);
    return CNET_UNSUPPORTED_CPU;
}

cnet_status cnet_create_for(const char *isa, int threads, cnet_model **model) {
    if (!isa) return CNET_NULL_POINTER;
    const cnet_status status = check_new(threads, model);
    if (status != CNET_OK) return status;
    for (int i = 0; i < carried_count; i++)
        if (!strcmp(carried[i]->name, isa)) return supported(isa) ? create(carried[i], threads, model) : CNET_UNSUPPORTED_CPU;
    return CNET_UNKNOWN_ISA;
}

cnet_status cnet_isa(const cnet_model *model, const char **isa) {
    if (!model || !isa) return CNET_NULL_POINTER;
    if (model->magic != alive()) return CNET_BAD_HANDLE;
    *isa = model->kernels->name;
    return CNET_OK;
}

cnet_status cnet_run(cnet_model *model, const float *images, size_t image_floats, size_t batch, float *logits, size_t logit_floats) {
    if (!model || !images || !logits) return CNET_NULL_POINTER;
    if (model->magic != alive()) return CNET_BAD_HANDLE;
    if (model->process != getpid()) return CNET_FORKED;
    if (batch == 0) return CNET_BAD_BATCH;
    const size_t image = (size_t)CNET_CHANNELS * (size_t)plan.height * (size_t)plan.width, classes = (size_t)plan.head.classes;
    if (image_floats / image != batch || image_floats % image || logit_floats / classes != batch || logit_floats % classes)
        return CNET_BAD_SHAPE;
    cnet_model &m = *model;
    pthread_mutex_lock(&m.turn);
    for (size_t i = 0; i < batch; i++) {
        Member member{&m.team, 0, m.phase};
        begin(m.team, m.phase, images + i * image, logits + i * classes);
        m.kernels->run(plan, m.memory, member, images + i * image, logits + i * classes);
        m.phase = member.phase;
    }
    pthread_mutex_unlock(&m.turn);
    return CNET_OK;
}

cnet_status cnet_destroy(cnet_model *model) {
    if (!model) return CNET_NULL_POINTER;
    if (model->magic != alive()) return CNET_BAD_HANDLE;
    release(model, model->process == getpid());
    return CNET_OK;
}

}  // extern "C"
