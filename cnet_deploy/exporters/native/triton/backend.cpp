// A backend of Triton Inference Server for libraries of `cnet-deploy export --native`: it loads <model>/<version>/model.so and runs on it
// what the server gives it. It lies beside the model, and needs nothing but the C library and the server that loads it.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <new>

#include "../cpp/cnet.h"
#include "../cpp/processors.h"
#include "json.h"
#include "server.h"
#include "sha256.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))
#define TRY(call)                       \
    do {                                \
        if (Error error_ = (call)) return error_; \
    } while (0)

namespace {

constexpr uint32_t API = 1;  // all that is called was there in 1.0
constexpr size_t MOST_MANIFEST = size_t{4} << 20;
constexpr size_t MOST_LIBRARY = size_t{4} << 30;
const char AGAIN[] = "export the model again: cnet-deploy export MODEL --native --triton FOLDER";

#if defined(__x86_64__)
const char MACHINE[] = "x86_64";
#elif defined(__aarch64__)
const char MACHINE[] = "aarch64";
#else
const char MACHINE[] = "";  // not compared
#endif

__attribute__((format(printf, 2, 3))) Error failed(int code, const char *format, ...) {
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    const int size = snprintf(text, sizeof text, "cnet: ");
    vsnprintf(text + size, sizeof text - static_cast<size_t>(size), format, arguments);
    va_end(arguments);
    return TRITONSERVER_ErrorNew(code, text);
}

void forget(Error error) {
    if (error) TRITONSERVER_ErrorDelete(error);
}

__attribute__((format(printf, 2, 3))) void tell(Level level, const char *format, ...) {
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    const int size = snprintf(text, sizeof text, "cnet: ");
    vsnprintf(text + size, sizeof text - static_cast<size_t>(size), format, arguments);
    va_end(arguments);
    forget(TRITONSERVER_LogMessage(level, "backend.cpp", 0, text));
}

Error no_memory(size_t bytes) {
    return failed(UNAVAILABLE, "no memory for %zu bytes; close something, or serve fewer instances", bytes);
}

uint64_t now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<uint64_t>(time.tv_sec) * 1000000000u + static_cast<uint64_t>(time.tv_nsec);
}

// Foreign text for a message: its printable ASCII, shortened.
struct Shown {
    char text[81];
    explicit Shown(const char *from, size_t size) {
        size_t to = 0;
        for (size_t i = 0; i < size && to < 80; i++) text[to++] = from[i] >= ' ' && from[i] < 127 ? from[i] : '?';
        text[to] = 0;
    }
    explicit Shown(const char *from) : Shown(from, strlen(from)) {}
    explicit Shown(json::Value value) : Shown(value ? value.at : "nothing", value ? static_cast<size_t>(value.end - value.at) : 7) {}
};

// Memory that grows and is kept.
struct Buffer {
    void *at = nullptr;
    size_t room = 0;
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { free(at); }
    bool reserve(size_t bytes) {  // what it held is lost if it grows
        if (bytes <= room) return true;
        free(at);
        at = nullptr;
        room = 0;
        if (posix_memalign(&at, 64, bytes)) {
            at = nullptr;
            return false;
        }
        room = bytes;
        return true;
    }
};

struct File {
    int number = -1;
    File() = default;
    explicit File(int opened) : number(opened) {}
    File(const File &) = delete;
    File &operator=(const File &) = delete;
    ~File() {
        if (number >= 0) close(number);
    }
};

ssize_t read_some(int file, void *to, size_t room) {
    ssize_t size;
    do size = read(file, to, room);
    while (size < 0 && errno == EINTR);
    return size;
}

bool write_all(int file, const char *from, size_t size) {
    while (size) {
        const ssize_t written = write(file, from, size);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        from += written;
        size -= static_cast<size_t>(written);
    }
    return true;
}

Error open_regular(const char *path, int file, size_t most, size_t *size) {
    struct stat state;
    if (file < 0 || fstat(file, &state)) return failed(NOT_FOUND, "%s can't be read: %s; %s", path, strerror(errno), AGAIN);
    if (!S_ISREG(state.st_mode)) return failed(INVALID, "%s is no regular file; %s", path, AGAIN);
    if (static_cast<uint64_t>(state.st_size) > most)
        return failed(INVALID, "%s has %lld bytes; expected at most %zu: %s", path, static_cast<long long>(state.st_size), most, AGAIN);
    *size = static_cast<size_t>(state.st_size);
    return nullptr;
}

// What the manifest states of the library that it lies beside.
struct Stated {
    char sha256[65];
    uint64_t bytes;
};

Error read_manifest(const char *path, Stated *stated) {
    const File file(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    size_t size;
    TRY(open_regular(path, file.number, MOST_MANIFEST, &size));
    Buffer text;
    if (!text.reserve(size + 1)) return no_memory(size + 1);
    size_t had = 0;
    while (had < size) {
        const ssize_t more = read_some(file.number, static_cast<char *>(text.at) + had, size - had);
        if (more < 0) return failed(NOT_FOUND, "%s can't be read: %s; %s", path, strerror(errno), AGAIN);
        if (!more) break;
        had += static_cast<size_t>(more);
    }
    if (const char *fault = json::fault(static_cast<char *>(text.at), had))
        return failed(INVALID, "%s is no manifest (%s); %s", path, fault, AGAIN);
    const json::Value manifest = json::value_of(static_cast<char *>(text.at), had);
    uint64_t version;
    if (!json::whole(json::member(manifest, "cnet_deploy_manifest"), &version) || version != 1)
        return failed(INVALID, "%s is no manifest of this version (cnet_deploy_manifest is %s; expected 1); %s", path,
                      Shown(json::member(manifest, "cnet_deploy_manifest")).text, AGAIN);
    if (const json::Value target = json::member(manifest, "target"); !json::equals(target, "native"))
        return failed(INVALID, "%s describes no native library (target %s; expected \"native\"); %s", path, Shown(target).text, AGAIN);
    const json::Value machine = json::member(json::member(manifest, "details"), "machine");
    if (*MACHINE && !json::equals(machine, MACHINE))
        return failed(UNSUPPORTED, "%s: the library is for %s, and this server runs on %s; export the model for this machine", path,
                      Shown(machine).text, MACHINE);
    if (!json::text(json::member(manifest, "sha256"), stated->sha256, sizeof stated->sha256) || strlen(stated->sha256) != 64 ||
        !json::whole(json::member(manifest, "bytes"), &stated->bytes))
        return failed(INVALID, "%s states no size and SHA-256 of the library; %s", path, AGAIN);
    return nullptr;
}

// A library of `export --native`, loaded.
struct Library {
    int file = -1;  // stays open as long as the library: the loader knows libraries by the path that they are loaded from
    void *handle = nullptr;
    decltype(&cnet_describe) describe = nullptr;
    decltype(&cnet_create) create = nullptr;
    decltype(&cnet_isa) isa = nullptr;
    decltype(&cnet_run) run = nullptr;
    decltype(&cnet_destroy) destroy = nullptr;

    Library() = default;
    Library(const Library &) = delete;
    Library &operator=(const Library &) = delete;
    ~Library() {
        if (handle) dlclose(handle);
        if (file >= 0) close(file);
    }
    Error load(const char *path, const Stated &stated);

private:
    Error open_copy(const char *path, const Stated &stated, int to);
    Error copy(const char *path, const Stated &stated);
    template <class Function>
    bool take(const char *name, Function *function) {
        *function = reinterpret_cast<Function>(dlsym(handle, name));
        return *function;
    }
};

// A file in a folder for temporary files that has no name there.
int nameless_file() {
    char path[] = "/tmp/cnet-XXXXXX";
    const int made = mkostemp(path, O_CLOEXEC);
    if (made >= 0) unlink(path);
    return made;
}

// Copies the library while its digest is taken, so that what is loaded is what was checked, whoever writes the file meanwhile.
Error Library::copy(const char *path, const Stated &stated) {
    if (file < 0) return failed(UNAVAILABLE, "%s can't be copied, to memory or to /tmp, from where it is loaded: %s", path, strerror(errno));
    const File from(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    size_t size;
    TRY(open_regular(path, from.number, MOST_LIBRARY, &size));
    if (size != stated.bytes)
        return failed(INVALID, "%s has %zu bytes, and its manifest states %llu; the pair does not belong together: %s", path, size,
                      static_cast<unsigned long long>(stated.bytes), AGAIN);
    constexpr size_t PIECE = 1 << 16;
    Buffer piece;
    if (!piece.reserve(PIECE)) return no_memory(PIECE);
    Sha256 digest;
    uint64_t bytes = 0;
    for (;;) {
        const ssize_t more = read_some(from.number, piece.at, PIECE);
        if (more < 0) return failed(NOT_FOUND, "%s can't be read: %s; %s", path, strerror(errno), AGAIN);
        if (!more) break;
        bytes += static_cast<uint64_t>(more);
        if (bytes > stated.bytes) break;
        digest.add(piece.at, static_cast<size_t>(more));
        if (!write_all(file, static_cast<char *>(piece.at), static_cast<size_t>(more)))
            return failed(UNAVAILABLE, "%s can't be copied, from where it is loaded: %s", path, strerror(errno));
    }
    if (bytes != stated.bytes) return failed(INVALID, "%s was changed while it was read; load the model again", path);
    char text[65];
    digest.finish(text);
    if (strcmp(text, stated.sha256))
        return failed(INVALID, "%s has SHA-256 %.16s..., and its manifest states %s...; the pair does not belong together: %s", path, text,
                      Shown(stated.sha256, 16).text, AGAIN);
    return nullptr;
}

// Loads the checked copy, which is kept in `to`.
Error Library::open_copy(const char *path, const Stated &stated, int to) {
    file = to;
    Error error = copy(path, stated);
    if (!error) {
        char name[64];
        snprintf(name, sizeof name, "/proc/self/fd/%d", file);
        handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (handle) return nullptr;
        const char *reason = dlerror();
        if (reason && !strncmp(reason, name, strlen(name))) reason += strlen(name) + 2;
        error = failed(INVALID, "%s can't be loaded as a library (%s); %s", path, reason ? reason : "no reason given", AGAIN);
    }
    if (file >= 0) close(file);
    file = -1;
    return error;
}

Error Library::load(const char *path, const Stated &stated) {
    const int memory = memfd_create("cnet", MFD_CLOEXEC);
    Error error = open_copy(path, stated, memory < 0 ? nameless_file() : memory);
    if (error && memory >= 0) {  // perhaps nothing in such a file may be run here
        const Error other = open_copy(path, stated, nameless_file());
        forget(other ? other : error);
        if (!other) error = nullptr;
    }
    TRY(error);
    decltype(&cnet_version) version;
    uint32_t number = 0;
    if (!take("cnet_version", &version) || !take("cnet_describe", &describe) || !take("cnet_create", &create) ||
        !take("cnet_isa", &isa) || !take("cnet_run", &run) || !take("cnet_destroy", &destroy) || version(&number) != CNET_OK || number < 1)
        return failed(INVALID, "%s is no library of cnet-deploy export --native; %s", path, AGAIN);
    return nullptr;
}

// A model that the server has loaded, in one version.
struct Model {
    Library library;
    uint64_t image = 0;  // floats
    uint64_t classes = 0;
    uint64_t shape[3] = {};
    uint64_t largest = 0;  // 0: requests have no dimension for the batch
    int threads = 1;

    Error load(TRITONBACKEND_Model *triton);

private:
    Error configure(json::Value config, const char *path);
    Error choose_threads(json::Value config);
};

// Compares one list of tensors in the configuration with the only one that the library has.
Error require_tensor(json::Value config, const char *list, const char *name, const uint64_t *dims, size_t count) {
    char expected[96];
    int size = 0;
    for (size_t i = 0; i < count; i++)
        size += snprintf(expected + size, sizeof expected - static_cast<size_t>(size), "%s%llu", i ? ", " : "",
                         static_cast<unsigned long long>(dims[i]));
    const json::Value tensors = json::member(config, list);
    if (json::length(tensors) != 1)
        return failed(INVALID, "config.pbtxt has %zu tensors under %s; expected one, \"%s\": correct it, or %s", json::length(tensors), list,
                      name, AGAIN);
    const json::Value tensor = json::next(tensors, {});
    const json::Value called = json::member(tensor, "name"), type = json::member(tensor, "data_type"), found = json::member(tensor, "dims");
    if (!json::equals(called, name))
        return failed(INVALID, "config.pbtxt calls the %s %s; expected \"%s\": correct it, or %s", list, Shown(called).text, name, AGAIN);
    if (!json::equals(type, "TYPE_FP32"))
        return failed(INVALID, "config.pbtxt has the %s of type %s; expected TYPE_FP32: correct it, or %s", list, Shown(type).text, AGAIN);
    if (const json::Value reshape = json::member(tensor, "reshape"))
        return failed(INVALID, "config.pbtxt has reshape %s for the %s; expected none: correct it, or %s", Shown(reshape).text, list, AGAIN);
    bool alike = json::length(found) == count;
    json::Value dim;
    for (size_t i = 0; alike && i < count; i++) {
        dim = json::next(found, dim);
        uint64_t number;
        alike = json::whole(dim, &number) && number == dims[i];
    }
    if (!alike)
        return failed(INVALID, "config.pbtxt has dims %s for the %s, and the library has [%s]; correct config.pbtxt, or %s",
                      Shown(found).text, list, expected, AGAIN);
    return nullptr;
}

Error Model::choose_threads(json::Value config) {
    uint64_t instances = 0;
    const json::Value groups = json::member(config, "instance_group");
    if (json::is_array(groups))
        for (json::Value group = json::next(groups, {}); group; group = json::next(groups, group)) {
            uint64_t count;
            if (json::whole(json::member(group, "count"), &count)) instances += count;
            if (const json::Value passive = json::member(group, "passive"); passive && *passive.at == 't')
                return failed(INVALID, "config.pbtxt has a passive instance_group, which runs nothing and on which a request ends the server; "
                              "take passive out");
        }
    if (!instances) instances = 1;
    const uint64_t usable = usable_processors();
    uint64_t chosen = usable / instances;
    chosen = chosen < 1 ? 1 : chosen > CNET_MAX_THREADS ? CNET_MAX_THREADS : chosen;
    if (const json::Value stated = json::member(json::member(json::member(config, "parameters"), "threads"), "string_value")) {
        if (!json::is_string(stated) || !json::whole(stated, &chosen) || chosen < 1 || chosen > CNET_MAX_THREADS)
            return failed(INVALID, "config.pbtxt has the parameter threads %s; expected a number from 1 to %d, as string_value: \"2\"",
                          Shown(stated).text, CNET_MAX_THREADS);
    }
    if (chosen > usable) {  // with more, threads would wait for some that have no processor
        tell(WARNING, "config.pbtxt has %llu threads, and the server may use %llu processors: no more run in an instance",
             static_cast<unsigned long long>(chosen), static_cast<unsigned long long>(usable));
        chosen = usable;
    }
    threads = static_cast<int>(chosen);
    if (chosen * instances > usable)
        tell(WARNING, "%llu instances of %llu threads are more than the %llu processors that the server may use, and will hinder each other; "
            "lower instance_group or the parameter threads", static_cast<unsigned long long>(instances),
            static_cast<unsigned long long>(chosen), static_cast<unsigned long long>(usable));
    return nullptr;
}

Error Model::configure(json::Value config, const char *path) {
    const char *description = nullptr;
    if (library.describe(&description) != CNET_OK || !description || json::fault(description, strlen(description)))
        return failed(INVALID, "%s does not describe itself; %s", path, AGAIN);
    const json::Value described = json::value_of(description, strlen(description)), input = json::member(described, "input");
    json::Value dim;
    image = 1;
    bool known = json::length(input) == 3 && json::whole(json::member(described, "classes"), &classes) && classes && classes < 1u << 31;
    for (size_t i = 0; known && i < 3; i++) {
        dim = json::next(input, dim);
        known = json::whole(dim, &shape[i]) && shape[i] && shape[i] < 1u << 20;
        image *= shape[i];
    }
    if (!known || image >= uint64_t{1} << 40) return failed(INVALID, "%s does not describe its input and classes; %s", path, AGAIN);
    if (const json::Value most = json::member(config, "max_batch_size"); most && (!json::whole(most, &largest) || largest > 1u << 20))
        return failed(INVALID, "config.pbtxt has max_batch_size %s; expected 0 to %u", Shown(most).text, 1u << 20);
    TRY(require_tensor(config, "input", "input", shape, 3));
    TRY(require_tensor(config, "output", "logits", &classes, 1));
    return choose_threads(config);
}

Error Model::load(TRITONBACKEND_Model *triton) {
    uint64_t version;
    const char *folder, *name;
    int artifacts;
    TRY(TRITONBACKEND_ModelName(triton, &name));
    TRY(TRITONBACKEND_ModelVersion(triton, &version));
    TRY(TRITONBACKEND_ModelRepository(triton, &artifacts, &folder));
    if (artifacts != FILES) return failed(UNSUPPORTED, "the repository is not in files; expected a folder");

    struct Message {
        TRITONSERVER_Message *at = nullptr;
        ~Message() {
            if (at) forget(TRITONSERVER_MessageDelete(at));
        }
    } message;
    const char *text;
    size_t size;
    TRY(TRITONBACKEND_ModelConfig(triton, 1, &message.at));
    TRY(TRITONSERVER_MessageSerializeToJson(message.at, &text, &size));
    if (const char *fault = json::fault(text, size)) return failed(INVALID, "the server's form of config.pbtxt can't be read: %s", fault);
    const json::Value config = json::value_of(text, size), stated_name = json::member(config, "default_model_filename");

    char file[256] = "model.so", path[4096], described[4104];
    if (stated_name && !json::equals(stated_name, "") && !json::text(stated_name, file, sizeof file))
        return failed(INVALID, "config.pbtxt has default_model_filename %s; expected \"model.so\"", Shown(stated_name).text);
    const int length = snprintf(path, sizeof path, "%s/%llu/%s", folder, static_cast<unsigned long long>(version), file);
    if (length < 0 || static_cast<size_t>(length) >= sizeof path) return failed(INVALID, "the path of model %s is too long", name);
    snprintf(described, sizeof described, "%s.json", path);
    Stated stated;
    TRY(read_manifest(described, &stated));
    TRY(library.load(path, stated));
    return configure(config, path);
}

// One request of an execution.
struct Part {
    TRITONBACKEND_Request *request;
    TRITONBACKEND_Response *response;
    TRITONBACKEND_Input *input;
    Error error;
    uint64_t images;  // of its own
    uint64_t first;   // its first image within the batch
    uint32_t buffers;
    bool wanted;      // whether the client asks for the logits
    void *logits;     // where the server wants them
};

struct Instance {
    Model *model = nullptr;
    cnet_model *handle = nullptr;
    Buffer work;      // the requests of an execution
    Buffer gathered;  // their images, where they are not in one piece
    Buffer scratch;   // their logits, where the library can't write them where they belong

    ~Instance() {
        if (handle) model->library.destroy(handle);
    }
    Error inspect(Part &part) const;
    Error gather(Part &part, uint64_t first);
    Error place(Part &part) const;
    const float *in_place(const Part &part) const;
    Error compute(Part *parts, uint32_t count, uint64_t *images, uint64_t *start, uint64_t *end);
};

bool in_memory(int memory) { return memory == MEMORY_CPU || memory == MEMORY_PINNED; }

// Whether a request can be run: one float32 tensor of whole images, and what it wants of the answer.
Error Instance::inspect(Part &part) const {
    const char *name;
    int type;
    const int64_t *shape;
    uint32_t dimensions;
    uint64_t bytes;
    TRY(TRITONBACKEND_RequestInputByIndex(part.request, 0, &part.input));
    TRY(TRITONBACKEND_InputProperties(part.input, &name, &type, &shape, &dimensions, &bytes, &part.buffers));
    if (type != FP32) return failed(INVALID, "input has another type than float32; send the images as FP32");
    int64_t images = 1;
    if (model->largest) {
        images = dimensions == 4 ? shape[0] : 0;  // for no images the server leaves the batch's dimension out
        if (images < 1 || static_cast<uint64_t>(images) > model->largest)
            return failed(INVALID, "input has %lld images; expected 1 to %llu", static_cast<long long>(images),
                          static_cast<unsigned long long>(model->largest));
    }
    const uint64_t expected = static_cast<uint64_t>(images) * model->image * sizeof(float);
    if (bytes != expected)
        return failed(INVALID, "input has %llu bytes; expected %llu, for %lld images of %llu x %llu x %llu float32",
                      static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(expected), static_cast<long long>(images),
                      static_cast<unsigned long long>(model->shape[0]), static_cast<unsigned long long>(model->shape[1]),
                      static_cast<unsigned long long>(model->shape[2]));
    uint32_t outputs;
    TRY(TRITONBACKEND_RequestOutputCount(part.request, &outputs));  // the server lists all where the client names none
    for (uint32_t i = 0; i < outputs; i++) {
        TRY(TRITONBACKEND_RequestOutputName(part.request, i, &name));
        part.wanted = part.wanted || !strcmp(name, "logits");
    }
    part.images = static_cast<uint64_t>(images);
    return nullptr;
}

// A request's images where the server has them; nullptr if they are not in one aligned piece of memory.
const float *Instance::in_place(const Part &part) const {
    const void *at;
    uint64_t size;
    int memory = MEMORY_CPU;
    int64_t id = 0;
    if (part.buffers != 1) return nullptr;
    if (Error error = TRITONBACKEND_InputBuffer(part.input, 0, &at, &size, &memory, &id)) {
        forget(error);  // `gather` meets it again, and reports it
        return nullptr;
    }
    const bool whole = size == part.images * model->image * sizeof(float) && reinterpret_cast<uintptr_t>(at) % alignof(float) == 0;
    return in_memory(memory) && whole ? static_cast<const float *>(at) : nullptr;
}

// Copies a request's images to their place in the batch.
Error Instance::gather(Part &part, uint64_t first) {
    const uint64_t expected = part.images * model->image * sizeof(float);
    char *to = static_cast<char *>(gathered.at) + first * model->image * sizeof(float);
    uint64_t had = 0;
    for (uint32_t i = 0; i < part.buffers; i++) {
        const void *at;
        uint64_t size;
        int memory = MEMORY_CPU;
        int64_t id = 0;
        TRY(TRITONBACKEND_InputBuffer(part.input, i, &at, &size, &memory, &id));
        if (!size) continue;
        if (!in_memory(memory)) return failed(UNSUPPORTED, "input is in a GPU's memory; send it in the processor's");
        if (size > expected - had) return failed(INVALID, "input has more bytes in its buffers than it states");
        memcpy(to + had, at, size);
        had += size;
    }
    return had == expected ? nullptr : failed(INVALID, "input has fewer bytes in its buffers than it states");
}

// Where the server wants a request's logits.
Error Instance::place(Part &part) const {
    TRITONBACKEND_Output *output;
    int memory = MEMORY_CPU;
    int64_t id = 0;
    const int64_t shape[2] = {static_cast<int64_t>(part.images), static_cast<int64_t>(model->classes)};
    const bool batched = model->largest;
    TRY(TRITONBACKEND_ResponseOutput(part.response, &output, "logits", FP32, batched ? shape : shape + 1, batched ? 2 : 1));
    TRY(TRITONBACKEND_OutputBuffer(output, &part.logits, part.images * model->classes * sizeof(float), &memory, &id));
    if (!in_memory(memory)) {
        part.logits = nullptr;
        return failed(UNSUPPORTED, "the logits are wanted in a GPU's memory; ask for them in the processor's");
    }
    return nullptr;
}

// Runs the images of all requests that have no error as one batch. An error is that of all of them.
Error Instance::compute(Part *parts, uint32_t count, uint64_t *images_run, uint64_t *start, uint64_t *end) {
    const uint64_t image_bytes = model->image * sizeof(float), logit_bytes = model->classes * sizeof(float);
    uint64_t most = 0;
    uint32_t left = 0;
    Part *only = nullptr;
    for (uint32_t i = 0; i < count; i++) {
        if (parts[i].error) continue;
        most += parts[i].images;
        only = left++ ? nullptr : &parts[i];
    }
    if (!left) return nullptr;
    const float *in = only ? in_place(*only) : nullptr;
    uint64_t batch = in ? only->images : 0;
    if (!in) {
        if (!gathered.reserve(most * image_bytes)) return no_memory(most * image_bytes);
        in = static_cast<const float *>(gathered.at);
        for (uint32_t i = 0; i < count; i++) {
            if (parts[i].error) continue;
            parts[i].first = batch;
            parts[i].error = gather(parts[i], batch);
            if (!parts[i].error) batch += parts[i].images;
        }
    }
    for (uint32_t i = 0; i < count; i++)
        if (!parts[i].error && parts[i].wanted) parts[i].error = place(parts[i]);
    if (!batch) return nullptr;
    const bool straight = only && only->logits && reinterpret_cast<uintptr_t>(only->logits) % alignof(float) == 0;
    if (!straight && !scratch.reserve(batch * logit_bytes)) return no_memory(batch * logit_bytes);
    auto *out = static_cast<float *>(straight ? only->logits : scratch.at);
    *start = now();
    const cnet_status status = model->library.run(handle, in, batch * model->image, batch, out, batch * model->classes);
    *end = now();
    if (status != CNET_OK) return failed(INTERNAL, "the library could not run %llu images: %s", static_cast<unsigned long long>(batch),
                                         cnet_message(status));
    *images_run = batch;
    for (uint32_t i = 0; !straight && i < count; i++)
        if (!parts[i].error && parts[i].logits)
            memcpy(parts[i].logits, out + parts[i].first * model->classes, parts[i].images * logit_bytes);
    return nullptr;
}

// Sends every response and gives every request back. `error` is that of all, nullptr if there is none.
void answer(TRITONBACKEND_ModelInstance *triton, Part *parts, uint32_t count, Error error, uint64_t begin, uint64_t start, uint64_t end) {
    for (uint32_t i = 0; i < count; i++) {
        Part &part = parts[i];
        const Error own = part.error ? part.error : error;
        if (part.response) forget(TRITONBACKEND_ResponseSend(part.response, RESPONSE_FINAL, own));
        forget(TRITONBACKEND_ModelInstanceReportStatistics(triton, part.request, !own, begin, start, end, now()));
        forget(TRITONBACKEND_RequestRelease(part.request, RELEASE_ALL));
        forget(part.error);
    }
    forget(error);
}

// What the server keeps for us. There is no operator new without the C++ library.
template <class State>
State *make() {
    void *memory = malloc(sizeof(State));
    return memory ? new (memory) State : nullptr;
}

template <class State>
void destroy(void *state) {
    if (!state) return;
    static_cast<State *>(state)->~State();
    free(state);
}

Error create(TRITONBACKEND_ModelInstance *triton, Instance &instance) {
    TRITONBACKEND_Model *owner;
    void *model;
    int kind;
    TRY(TRITONBACKEND_ModelInstanceKind(triton, &kind));
    if (kind != KIND_CPU)
        return failed(UNSUPPORTED, "native libraries run on the CPU; expected instance_group [ { kind: KIND_CPU } ] in config.pbtxt");
    TRY(TRITONBACKEND_ModelInstanceModel(triton, &owner));
    TRY(TRITONBACKEND_ModelState(owner, &model));
    instance.model = static_cast<Model *>(model);
    const cnet_status status = instance.model->library.create(instance.model->threads, &instance.handle);
    if (status != CNET_OK) {
        instance.handle = nullptr;
        return failed(status == CNET_UNSUPPORTED_CPU ? UNSUPPORTED : UNAVAILABLE, "no handle of %d threads could be made: %s",
                      instance.model->threads, cnet_message(status));
    }
    return TRITONBACKEND_ModelInstanceSetState(triton, &instance);
}

}  // namespace

EXPORTED Error TRITONBACKEND_Initialize(TRITONBACKEND_Backend *) {
    uint32_t major, minor;
    TRY(TRITONBACKEND_ApiVersion(&major, &minor));
    if (major == API) return nullptr;
    return failed(UNSUPPORTED, "the server has version %u.%u of the interface for backends; expected %u.0 or a later %u.x, as Triton 2 has",
                  major, minor, API, API);
}

EXPORTED Error TRITONBACKEND_Finalize(TRITONBACKEND_Backend *) { return nullptr; }

EXPORTED Error TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model *triton) {
    auto *model = make<Model>();
    if (!model) return no_memory(sizeof(Model));
    Error error = model->load(triton);
    if (!error) error = TRITONBACKEND_ModelSetState(triton, model);
    if (error) destroy<Model>(model);
    return error;
}

EXPORTED Error TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model *triton) {
    void *model;
    TRY(TRITONBACKEND_ModelState(triton, &model));
    destroy<Model>(model);
    return nullptr;
}

EXPORTED Error TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance *triton) {
    auto *instance = make<Instance>();
    if (!instance) return no_memory(sizeof(Instance));
    Error error = create(triton, *instance);
    if (error) destroy<Instance>(instance);
    return error;
}

EXPORTED Error TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance *triton) {
    void *instance;
    TRY(TRITONBACKEND_ModelInstanceState(triton, &instance));
    destroy<Instance>(instance);
    return nullptr;
}

// An error that is returned leaves all requests to the server, which answers them with it.
EXPORTED Error TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance *triton, TRITONBACKEND_Request **requests,
                                                  const uint32_t count) {
    const uint64_t begin = now();
    void *state;
    TRY(TRITONBACKEND_ModelInstanceState(triton, &state));
    Instance &instance = *static_cast<Instance *>(state);
    if (!instance.work.reserve(count * sizeof(Part))) return no_memory(count * sizeof(Part));
    auto *parts = static_cast<Part *>(instance.work.at);
    for (uint32_t i = 0; i < count; i++) {
        parts[i] = Part{};
        parts[i].request = requests[i];
        parts[i].error = TRITONBACKEND_ResponseNew(&parts[i].response, requests[i]);
        if (parts[i].error) {
            parts[i].response = nullptr;
            tell(FAULT, "a request gets no answer: %s", TRITONSERVER_ErrorMessage(parts[i].error));
        } else {
            parts[i].error = instance.inspect(parts[i]);
        }
    }
    uint64_t images = 0, start = now(), end = start;
    const Error error = instance.compute(parts, count, &images, &start, &end);
    answer(triton, parts, count, error, begin, start, end);
    if (images) forget(TRITONBACKEND_ModelInstanceReportBatchStatistics(triton, images, begin, start, end, now()));
    return nullptr;
}
