/* A stand-in for the CUDA driver that keeps the device's memory on the host: what device_memory.py needs of libcuda.so.1, and no more.
 *
 * It is as strict as the driver: every call but a few needs a context that is current in the thread, every handle and every byte of a copy
 * is looked up, and what is not allowed while a stream is captured ends the capture. Work is done at once; its clock goes on by one
 * millisecond a copy, so that times are exact. stand_in_live tells what was taken and not given back, stand_in_fail makes a call fail. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
typedef unsigned long long Address;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, NO_SUCH_DEVICE = 101, NO_CONTEXT = 201, BAD_HANDLE = 400,
       NOT_FOUND = 500, ILLEGAL = 700, CAPTURING = 900, INVALIDATED = 901, WRONG_THREAD = 908 };
enum { MEMORY, PINNED, STREAM, EVENT, GRAPH, EXECUTABLE, RETAINED, KINDS };
enum { RELAXED = 2 };
static const Address DEVICE_SIDE = 1ull << 62; /* no address of the device is one of the host */

typedef struct { Address to, from; size_t size; } Copy;
typedef struct Thing {
    struct Thing *next;
    int kind, capturing, invalid, mode, count, recorded;
    pthread_t owner;
    size_t size;
    double at;
    char *bytes;
    Copy *copies;
} Thing;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Thing *things;
static int live[KINDS], initialized, context, broken, countdown, failing_status;
static char failing[64];
static size_t taken_bytes;
static double clock_ms;
static __thread void *stack[16];
static __thread int depth;

int stand_in_live(int kind) { return kind == RETAINED ? live[RETAINED] : kind < KINDS ? live[kind] : -1; }

/* From the call number `after` on, `name` fails once with `status`; "*" fails everything for good, as after a fault of the device,
 * but for what only moves contexts. */
void stand_in_fail(const char *name, int after, int status) {
    broken = strcmp(name, "*") ? 0 : status;
    strncpy(failing, name, sizeof failing - 1);
    countdown = after;
    failing_status = status;
}

static Status due(const char *name, int needs_context) {
    if (!initialized) return NOT_INITIALIZED;
    if (broken && strncmp(name, "cuCtx", 5)) return broken;
    if (!strcmp(name, failing) && --countdown == 0) return failing_status;
    if (needs_context && (!depth || !stack[depth - 1] || !live[RETAINED])) return NO_CONTEXT;
    return OK;
}

#define BEGIN(name, needs_context)                         \
    pthread_mutex_lock(&lock);                             \
    Status status = due(name, needs_context);              \
    if (status) goto end
#define END                                                \
    end:                                                   \
    pthread_mutex_unlock(&lock);                           \
    return status
#define REFUSE(code) do { status = (code); goto end; } while (0)

static Thing *make(int kind) {
    Thing *thing = calloc(1, sizeof *thing);
    thing->kind = kind, thing->next = things, things = thing, live[kind]++;
    return thing;
}

static Thing *find(int kind, const void *handle) {
    for (Thing *thing = things; thing; thing = thing->next)
        if (thing == handle && thing->kind == kind) return thing;
    return NULL;
}

static Thing *at(int kind, Address address) {
    for (Thing *thing = things; thing; thing = thing->next)
        if (thing->kind == kind && (Address)thing->bytes + (kind == MEMORY ? DEVICE_SIDE : 0) == address) return thing;
    return NULL;
}

static void drop(Thing *thing) {
    Thing **link = &things;
    while (*link != thing) link = &(*link)->next;
    *link = thing->next;
    live[thing->kind]--;
    free(thing->bytes), free(thing->copies), free(thing);
}

static Thing *capturing(int unless_mode) {
    for (Thing *thing = things; thing; thing = thing->next)
        if (thing->kind == STREAM && thing->capturing && thing->mode != unless_mode) return thing;
    return NULL;
}

static char *inside(Address address, size_t size) { /* NULL unless it is all within one allocation */
    for (Thing *thing = things; thing; thing = thing->next) {
        Address start = (Address)thing->bytes + DEVICE_SIDE;
        if (thing->kind == MEMORY && address >= start && address + size <= start + thing->size) return thing->bytes + (address - start);
    }
    return NULL;
}

static Status copy(const Copy *one) {
    int in = (one->to & DEVICE_SIDE) != 0;
    char *device = inside(in ? one->to : one->from, one->size);
    if (!device) return INVALID;
    if (in) memcpy(device, (const void *)one->from, one->size);
    else memcpy((void *)one->to, device, one->size);
    clock_ms += 1;
    return OK;
}

static Status put(void *handle, Copy one) {
    Thing *stream = find(STREAM, handle);
    if (!stream) return BAD_HANDLE;
    if (!stream->capturing) return copy(&one);
    if (!inside(one.to & DEVICE_SIDE ? one.to : one.from, one.size)) return INVALID;
    stream->copies = realloc(stream->copies, (stream->count + 1) * sizeof one);
    stream->copies[stream->count++] = one;
    return OK;
}

/* ---- the driver and its device ---- */

Status cuInit(unsigned flags) {
    (void)flags;
    const char *status = getenv("STAND_IN_INIT");
    if (status) return atoi(status);
    initialized = 1;
    return OK;
}
Status cuDriverGetVersion(int *version) { *version = 13000; return OK; }
Status cuDeviceGetCount(int *count) {
    const char *devices = getenv("STAND_IN_DEVICES");
    *count = devices ? atoi(devices) : 1;
    return initialized ? OK : NOT_INITIALIZED;
}
Status cuDeviceGet(int *device, int ordinal) {
    BEGIN("cuDeviceGet", 0);
    if (ordinal) REFUSE(NO_SUCH_DEVICE);
    *device = 0;
    END;
}
Status cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    BEGIN("cuDeviceGetName", 0);
    strncpy(name, "Stand-in 9000", length);
    END;
}
Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    BEGIN("cuDeviceGetAttribute", 0);
    *value = attribute == 75 ? 9 : attribute == 76 ? 1 : 0;
    END;
}
Status cuDeviceComputeCapability(int *major, int *minor, int device) {
    (void)device;
    *major = 9, *minor = 1;
    return OK;
}
Status cuGetErrorString(Status status, const char **words) {
    *words = status == NO_MEMORY ? "out of memory" : status == ILLEGAL ? "an illegal memory access was encountered"
           : status == NO_SUCH_DEVICE ? "invalid device ordinal" : status == NO_CONTEXT ? "invalid device context"
           : status == CAPTURING ? "operation not permitted when stream is capturing" : status == INVALIDATED
           ? "operation failed due to a previous error during capture" : status == INVALID ? "invalid argument"
           : status == BAD_HANDLE ? "invalid resource handle" : status == NO_DEVICE ? "no CUDA-capable device is detected" : "another error";
    return OK;
}
Status cuGetErrorName(Status status, const char **words) { return cuGetErrorString(status, words); }

/* ---- contexts: the device has one, the primary ---- */

Status cuDevicePrimaryCtxRetain(void **found, int device) {
    (void)device;
    BEGIN("cuDevicePrimaryCtxRetain", 0);
    live[RETAINED]++;
    *found = &context;
    END;
}
Status cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    BEGIN("cuDevicePrimaryCtxRelease", 0);
    if (!live[RETAINED]) REFUSE(NO_CONTEXT);
    live[RETAINED]--;
    END;
}
Status cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    (void)device;
    BEGIN("cuDevicePrimaryCtxGetState", 0);
    *flags = 0, *active = live[RETAINED] > 0;
    END;
}
Status cuCtxSetCurrent(void *wanted) {
    BEGIN("cuCtxSetCurrent", 0);
    if (wanted && (wanted != &context || !live[RETAINED])) REFUSE(NO_CONTEXT);
    if (!depth) depth = 1;
    stack[depth - 1] = wanted;
    if (!wanted) depth--;
    END;
}
Status cuCtxGetCurrent(void **found) {
    *found = depth ? stack[depth - 1] : NULL;
    return OK;
}
Status cuCtxPushCurrent_v2(void *wanted) {
    BEGIN("cuCtxPushCurrent", 0);
    if (wanted != &context || !live[RETAINED] || depth == 16) REFUSE(NO_CONTEXT);
    stack[depth++] = wanted;
    END;
}
Status cuCtxPopCurrent_v2(void **popped) {
    BEGIN("cuCtxPopCurrent", 0);
    if (!depth) REFUSE(NO_CONTEXT);
    *popped = stack[--depth];
    END;
}
Status cuCtxGetDevice(int *device) {
    *device = 0;
    return depth ? OK : NO_CONTEXT;
}

/* ---- memory ---- */

static Status take(int kind, size_t size, Thing **made) {
    const char *limit = getenv("STAND_IN_BYTES");
    Thing *hindered = capturing(RELAXED);
    if (hindered) {
        hindered->invalid = 1;
        return CAPTURING;
    }
    if (!size) return INVALID;
    if (limit && taken_bytes + size > (size_t)atoll(limit)) return NO_MEMORY;
    *made = make(kind);
    (*made)->bytes = malloc(size), (*made)->size = size;
    memset((*made)->bytes, 0xa5, size);
    taken_bytes += size;
    return OK;
}
static Status give(Thing *thing) {
    if (!thing) return INVALID;
    taken_bytes -= thing->size;
    drop(thing);
    return OK;
}
Status cuMemAlloc_v2(Address *pointer, size_t size) {
    Thing *made;
    BEGIN("cuMemAlloc", 1);
    if ((status = take(MEMORY, size, &made))) goto end;
    *pointer = (Address)made->bytes + DEVICE_SIDE;
    END;
}
Status cuMemFree_v2(Address pointer) {
    BEGIN("cuMemFree", 1);
    status = give(at(MEMORY, pointer));
    END;
}
Status cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    Thing *made;
    (void)flags;
    BEGIN("cuMemHostAlloc", 1);
    if ((status = take(PINNED, size, &made))) goto end;
    *pointer = made->bytes;
    END;
}
Status cuMemFreeHost(void *pointer) {
    BEGIN("cuMemFreeHost", 1);
    status = give(at(PINNED, (Address)pointer));
    END;
}
Status cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *stream) {
    BEGIN("cuMemcpyHtoDAsync", 1);
    status = put(stream, (Copy){to, (Address)from, size});
    END;
}
Status cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream) {
    BEGIN("cuMemcpyDtoHAsync", 1);
    status = put(stream, (Copy){(Address)to, from, size});
    END;
}

/* ---- streams and events ---- */

Status cuStreamCreate(void **stream, unsigned flags) {
    BEGIN("cuStreamCreate", 1);
    if (flags != 1) REFUSE(INVALID); /* a stream that waits for the default stream is not what is wanted */
    *stream = make(STREAM);
    END;
}
Status cuStreamDestroy_v2(void *stream) {
    BEGIN("cuStreamDestroy", 1);
    Thing *thing = find(STREAM, stream);
    if (!thing) REFUSE(BAD_HANDLE);
    drop(thing);
    END;
}
Status cuStreamSynchronize(void *stream) {
    BEGIN("cuStreamSynchronize", 1);
    Thing *thing = find(STREAM, stream);
    if (!thing) REFUSE(BAD_HANDLE);
    if (thing->capturing) {
        thing->invalid = 1;
        REFUSE(CAPTURING);
    }
    END;
}
Status cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    BEGIN("cuEventCreate", 1);
    *event = make(EVENT);
    END;
}
Status cuEventDestroy_v2(void *event) {
    BEGIN("cuEventDestroy", 1);
    Thing *thing = find(EVENT, event);
    if (!thing) REFUSE(BAD_HANDLE);
    drop(thing);
    END;
}
Status cuEventRecord(void *event, void *stream) {
    BEGIN("cuEventRecord", 1);
    Thing *thing = find(EVENT, event);
    if (!thing || !find(STREAM, stream)) REFUSE(BAD_HANDLE);
    thing->recorded = 1, thing->at = clock_ms;
    END;
}
Status cuEventElapsedTime(float *ms, void *begin, void *end_event) {
    BEGIN("cuEventElapsedTime", 1);
    Thing *first = find(EVENT, begin), *last = find(EVENT, end_event);
    if (!first || !last || !first->recorded || !last->recorded) REFUSE(BAD_HANDLE);
    *ms = (float)(last->at - first->at);
    END;
}
Status cuEventElapsedTime_v2(float *ms, void *begin, void *end_event) { return cuEventElapsedTime(ms, begin, end_event); }

/* ---- graphs ---- */

Status cuStreamBeginCapture_v2(void *stream, int mode) {
    BEGIN("cuStreamBeginCapture", 1);
    Thing *thing = find(STREAM, stream);
    if (!thing) REFUSE(BAD_HANDLE);
    if (thing->capturing || mode < 0 || mode > RELAXED) REFUSE(INVALID);
    thing->capturing = 1, thing->invalid = 0, thing->mode = mode, thing->owner = pthread_self();
    END;
}
Status cuStreamEndCapture(void *stream, void **graph) {
    BEGIN("cuStreamEndCapture", 1);
    Thing *thing = find(STREAM, stream);
    *graph = NULL;
    if (!thing) REFUSE(BAD_HANDLE);
    if (!thing->capturing) REFUSE(INVALID);
    if (thing->mode != RELAXED && !pthread_equal(thing->owner, pthread_self())) REFUSE(WRONG_THREAD);
    thing->capturing = 0;
    if (thing->invalid) {
        free(thing->copies);
        thing->copies = NULL, thing->count = 0;
        REFUSE(INVALIDATED);
    }
    Thing *made = make(GRAPH);
    made->copies = thing->copies, made->count = thing->count;
    thing->copies = NULL, thing->count = 0;
    *graph = made;
    END;
}
Status cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    (void)flags;
    BEGIN("cuGraphInstantiate", 1);
    Thing *from = find(GRAPH, graph);
    if (!from) REFUSE(BAD_HANDLE);
    Thing *made = make(EXECUTABLE);
    made->count = from->count;
    made->copies = malloc((made->count + 1) * sizeof(Copy));
    if (from->count) memcpy(made->copies, from->copies, made->count * sizeof(Copy));
    *executable = made;
    END;
}
Status cuGraphLaunch(void *executable, void *stream) {
    BEGIN("cuGraphLaunch", 1);
    Thing *thing = find(EXECUTABLE, executable);
    if (!thing || !find(STREAM, stream)) REFUSE(BAD_HANDLE);
    for (int number = 0; number < thing->count && !status; number++) status = put(stream, thing->copies[number]);
    END;
}
Status cuGraphDestroy(void *graph) {
    BEGIN("cuGraphDestroy", 0);
    Thing *thing = find(GRAPH, graph);
    if (!thing) REFUSE(BAD_HANDLE);
    drop(thing);
    END;
}
Status cuGraphExecDestroy(void *executable) {
    BEGIN("cuGraphExecDestroy", 0);
    Thing *thing = find(EXECUTABLE, executable);
    if (!thing) REFUSE(BAD_HANDLE);
    drop(thing);
    END;
}

/* ---- how cuda-python finds the calls: by name without version ---- */

#define CALL(name) {#name, (void *)name}
#define CALL_AS(name, version) {#name, (void *)name##version}
Status cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags, int *how);
Status cuGetProcAddress(const char *symbol, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}
static const struct { const char *name; void *function; } calls[] = {
    CALL(cuInit), CALL(cuDriverGetVersion), CALL(cuDeviceGetCount), CALL(cuDeviceGet), CALL(cuDeviceGetName), CALL(cuDeviceGetAttribute),
    CALL(cuDeviceComputeCapability), CALL(cuGetErrorString), CALL(cuGetErrorName), CALL(cuDevicePrimaryCtxRetain),
    CALL_AS(cuDevicePrimaryCtxRelease, _v2), CALL(cuDevicePrimaryCtxGetState), CALL(cuCtxSetCurrent), CALL(cuCtxGetCurrent), CALL_AS(cuCtxPushCurrent, _v2),
    CALL_AS(cuCtxPopCurrent, _v2), CALL(cuCtxGetDevice), CALL_AS(cuMemAlloc, _v2), CALL_AS(cuMemFree, _v2), CALL(cuMemHostAlloc),
    CALL(cuMemFreeHost), CALL_AS(cuMemcpyHtoDAsync, _v2), CALL_AS(cuMemcpyDtoHAsync, _v2), CALL(cuStreamCreate),
    CALL_AS(cuStreamDestroy, _v2), CALL(cuStreamSynchronize), CALL(cuEventCreate), CALL_AS(cuEventDestroy, _v2), CALL(cuEventRecord),
    CALL(cuEventElapsedTime), CALL_AS(cuStreamBeginCapture, _v2), CALL(cuStreamEndCapture), CALL_AS(cuGraphInstantiate, WithFlags),
    CALL(cuGraphInstantiateWithFlags), CALL(cuGraphLaunch), CALL(cuGraphDestroy), CALL(cuGraphExecDestroy), CALL_AS(cuGetProcAddress, _v2),
};
Status cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags, int *how) {
    (void)version, (void)flags;
    *function = NULL;
    for (size_t number = 0; number < sizeof calls / sizeof *calls; number++)
        if (!strcmp(symbol, calls[number].name)) *function = calls[number].function;
    if (how) *how = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
