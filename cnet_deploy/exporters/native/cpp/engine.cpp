// The C interface: handles, their memory and their threads. Compiled once, for the baseline, so that it can refuse on any processor.
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "cnet.h"
#include "constants.h"
#include "cpu.hpp"
#include "kernels.h"
#include "processors.h"
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

// Memory for several arrays.
struct Reserved {
    void *start = nullptr;
    size_t bytes = 0;
};

// Where one thread computes whole images: a team of one, its own maps, and its part of the handle's scratch.
struct Lane {
    Memory memory{};
    Team team;
    uint32_t phase = 2;
};

}  // namespace

struct cnet_model {
    uint64_t magic = 0;
    const Kernels *kernels = nullptr;
    pid_t process = 0;
    pthread_mutex_t turn;
    Team team;
    uint32_t phase = 2;  // after the last inference
    cnet_sharing sharing = CNET_SHARE_AUTO;
    Memory memory{};
    Reserved reserved;
    Lane *lane = nullptr;  // of each thread; null until images are shared
    Reserved lanes;
    int workers = 0;
    pthread_t worker[most_threads];
};

namespace {

struct Start {
    cnet_model *model;
    int thread;
};

size_t image_floats_of(const Plan &p) { return (size_t)CNET_CHANNELS * (size_t)p.height * (size_t)p.width; }

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

struct Piece {
    float **at;
    size_t floats;
};

// All pieces in one, on huge pages where the system has them: planes lie far apart, and with small pages each would miss the TLB.
// A debug build allocates piece by piece, so that a sanitizer sees where each ends.
bool reserve(Reserved &all, const Piece *pieces, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += piece_bytes(pieces[i].floats);
#ifdef CNET_DEBUG
    for (int i = 0; i < count; i++) {
        void *piece = nullptr;
        if (posix_memalign(&piece, line_bytes, piece_bytes(pieces[i].floats))) return false;
        *pieces[i].at = (float *)piece;
    }
    all.bytes = bytes;
#else
    bytes = rounded(bytes, huge_page);
    char *const start = (char *)mmap(nullptr, bytes + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return false;
    char *at = (char *)rounded((size_t)start, huge_page);
    if (at > start) munmap(start, (size_t)(at - start));
    munmap(at + bytes, huge_page - (size_t)(at - start));
    all = {at, bytes};
    madvise(at, bytes, MADV_HUGEPAGE);  // may fail: it only makes runs faster
    for (int i = 0; i < count; i++) {
        *pieces[i].at = (float *)(void *)at;
        at += piece_bytes(pieces[i].floats);
    }
#endif
    return true;
}

// A debug build has nothing mapped: its pieces are freed one by one.
void unmap(Reserved &all) {
    if (all.start) munmap(all.start, all.bytes);
    all = {};
}

void free_maps(const Memory &memory) {
#ifdef CNET_DEBUG
    free(memory.activations);
    free(memory.between);
    free(memory.features);
#else
    (void)memory;
#endif
}

// The maps of one image, without scratch.
constexpr int map_pieces = 3;
void list_maps(Memory &memory, Piece *pieces) {
    pieces[0] = {&memory.activations, (size_t)plan.activations};
    pieces[1] = {&memory.between, (size_t)plan.between};
    pieces[2] = {&memory.features, feature_floats()};
}

bool allocate(cnet_model &m, int threads) {
    Piece pieces[map_pieces + 1];
    list_maps(m.memory, pieces);
    m.memory.scratch_floats = m.kernels->scratch_floats(plan);
    pieces[map_pieces] = {&m.memory.scratch, (size_t)m.memory.scratch_floats * (size_t)threads};
    return reserve(m.reserved, pieces, map_pieces + 1);
}

void free_lanes(cnet_model &m) {
    for (int i = 1; m.lane && i < m.team.size; i++) free_maps(m.lane[i].memory);
    unmap(m.lanes);
    free(m.lane);
    m.lane = nullptr;
}

void free_memory(cnet_model &m) {
    free_lanes(m);
    free_maps(m.memory);
#ifdef CNET_DEBUG
    free(m.memory.scratch);
#endif
    unmap(m.reserved);
}

// Lanes for all threads; the first computes in the handle's own maps. Within the caller's turn.
bool reserve_lanes(cnet_model &m) {
    if (m.lane) return true;
    const int threads = m.team.size;
    void *place = nullptr;
    if (posix_memalign(&place, alignof(Lane), (size_t)threads * sizeof(Lane))) return false;
    m.lane = (Lane *)place;
    Piece pieces[most_threads * map_pieces];
    for (int i = 0; i < threads; i++) {
        Memory &memory = (new (m.lane + i) Lane)->memory;
        if (i == 0) memory = m.memory;
        else list_maps(memory, pieces + (i - 1) * map_pieces);
        memory.scratch_floats = m.memory.scratch_floats;
        memory.scratch = m.memory.scratch + i * memory.scratch_floats;
    }
    if (threads == 1 || reserve(m.lanes, pieces, (threads - 1) * map_pieces)) return true;
    free_lanes(m);
    return false;
}

// One thread's part of an inference of images; all members of the team call it.
void run_images(cnet_model &m, Member &member) {
    Team &team = m.team;
    for (; claim(member) >= 0; finish(member)) {
        Lane &lane = m.lane[member.thread];
        const float *images = team.image.load(std::memory_order_relaxed);
        float *logits = team.logits.load(std::memory_order_relaxed);
        const size_t count = team.images.load(std::memory_order_relaxed);
        for (size_t i; (i = team.taken.fetch_add(1, std::memory_order_relaxed)) < count;) {
            Member alone{&lane.team, 0, lane.phase};
            m.kernels->run(plan, lane.memory, alone, images + i * image_floats_of(plan), logits + i * (size_t)plan.head.classes);
            lane.phase = alone.phase;
        }
    }
    meet(member);
}

// The caller's part of an inference. `images`: of so many, each by one thread; 0: of one, whose layers are shared.
void infer(cnet_model &m, const float *image, float *logits, size_t images) {
    Member member{&m.team, 0, first_phase(m.phase, images > 0)};
    begin(m.team, member.phase, image, logits, images);
    if (images) run_images(m, member);
    else m.kernels->run(plan, m.memory, member, image, logits);
    m.phase = member.phase;
}

// How many of a batch's images threads take whole; the layers of the others are shared.
size_t whole_images(cnet_model &m, size_t batch) {
    const size_t threads = (size_t)m.team.size;
    if (m.sharing == CNET_SHARE_IMAGES) return batch;  // cnet_share has reserved the lanes
    const size_t whole = m.sharing == CNET_SHARE_AUTO && threads > 1 ? batch / threads * threads : 0;
    return whole && reserve_lanes(m) ? whole : 0;
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
        if (of_images(seen)) run_images(m, member);
        else m.kernels->run(plan, m.memory, member, team.image.load(std::memory_order_relaxed), team.logits.load(std::memory_order_relaxed));
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
    const uint64_t count = usable_processors();
    return count < 1 ? 1 : count > most_threads ? most_threads : (int)count;
}

cnet_status create(const Kernels *kernels, int threads, cnet_model **out) {
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
        if (supported(carried[i]->name)) {
            const int most = processors();
            return create(carried[i], threads && threads < most ? threads : most, model);
        }
    return CNET_UNSUPPORTED_CPU;
}

cnet_status cnet_create_for(const char *isa, int threads, cnet_model **model) {
    if (!isa) return CNET_NULL_POINTER;
    const cnet_status status = check_new(threads, model);
    if (status != CNET_OK) return status;
    for (int i = 0; i < carried_count; i++)
        if (!strcmp(carried[i]->name, isa)) return supported(isa) ? create(carried[i], threads ? threads : processors(), model) : CNET_UNSUPPORTED_CPU;
    return CNET_UNKNOWN_ISA;
}

cnet_status cnet_isa(const cnet_model *model, const char **isa) {
    if (!model || !isa) return CNET_NULL_POINTER;
    if (model->magic != alive()) return CNET_BAD_HANDLE;
    *isa = model->kernels->name;
    return CNET_OK;
}

cnet_status cnet_share(cnet_model *model, cnet_sharing sharing) {
    if (!model) return CNET_NULL_POINTER;
    if (model->magic != alive()) return CNET_BAD_HANDLE;
    if (model->process != getpid()) return CNET_FORKED;
    if (sharing != CNET_SHARE_AUTO && sharing != CNET_SHARE_LAYERS && sharing != CNET_SHARE_IMAGES) return CNET_BAD_SHARING;
    pthread_mutex_lock(&model->turn);
    const bool possible = sharing != CNET_SHARE_IMAGES || reserve_lanes(*model);
    if (possible) model->sharing = sharing;
    pthread_mutex_unlock(&model->turn);
    return possible ? CNET_OK : CNET_NO_MEMORY;
}

cnet_status cnet_threads(const cnet_model *model, int *threads) {
    if (!model || !threads) return CNET_NULL_POINTER;
    if (model->magic != alive()) return CNET_BAD_HANDLE;
    *threads = model->team.size;
    return CNET_OK;
}

cnet_status cnet_memory(cnet_model *model, size_t *bytes) {
    if (!model || !bytes) return CNET_NULL_POINTER;
    if (model->magic != alive()) return CNET_BAD_HANDLE;
    if (model->process != getpid()) return CNET_FORKED;
    pthread_mutex_lock(&model->turn);
    *bytes = model->reserved.bytes + model->lanes.bytes;
    pthread_mutex_unlock(&model->turn);
    return CNET_OK;
}

cnet_status cnet_run(cnet_model *model, const float *images, size_t image_floats, size_t batch, float *logits, size_t logit_floats) {
    if (!model || !images || !logits) return CNET_NULL_POINTER;
    if (model->magic != alive()) return CNET_BAD_HANDLE;
    if (model->process != getpid()) return CNET_FORKED;
    if (batch == 0) return CNET_BAD_BATCH;
    const size_t image = image_floats_of(plan), classes = (size_t)plan.head.classes;
    if (image_floats / image != batch || image_floats % image || logit_floats / classes != batch || logit_floats % classes)
        return CNET_BAD_SHAPE;
    cnet_model &m = *model;
    pthread_mutex_lock(&m.turn);
    const size_t whole = whole_images(m, batch);
    if (whole) infer(m, images, logits, whole);
    for (size_t i = whole; i < batch; i++) infer(m, images + i * image, logits + i * classes, 0);
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
