/* A stand-in for the driver's management library: what hardware/nvml.py needs of libnvidia-ml.so.1, and no more.
 *
 * As in the real one, nothing answers before nvmlInit, and every handle is looked up. The surroundings say what it is like:
 * STAND_IN_INIT (the error that nvmlInit ends with), STAND_IN_DEVICES (how many), STAND_IN_UNSUPPORTED (names, each between spaces), and
 * STAND_IN_FIELDS: where the counters of slowdowns are, "late" (269 to 271), "early" (251 to 253), "both" or "none". OLDER is a driver
 * that has clocks throttle reasons alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
typedef unsigned long long Long;
enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
enum { UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3 };
typedef struct { unsigned field, scope; long long time, latency; unsigned type; Status status; Long value; } Value;
typedef struct { const char *name, *uuid; } Device;

static const Device devices[] = {{"Stand-in 9000", "GPU-11111111-1111-1111-1111-111111111111"}, {"Stand-in 9100", "GPU-2222"}};
static int open_count;

int stand_in_live(void) { return open_count; }

static const char *set(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}
static int count(void) { return atoi(set("STAND_IN_DEVICES", "2")); }
static Status due(const char *name, const Device *device) {
    char spaced[80];
    snprintf(spaced, sizeof spaced, " %s ", name);
    if (!open_count) return UNINITIALIZED;
    if (device && device != &devices[0] && device != &devices[1]) return INVALID;
    return strstr(set("STAND_IN_UNSUPPORTED", ""), spaced) ? NOT_SUPPORTED : OK;
}
#define NEEDS(name, device)                  \
    do {                                     \
        Status status = due(name, device);   \
        if (status) return status;           \
    } while (0)

Status nvmlInitWithFlags(unsigned flags) {
    Status status = atoi(set("STAND_IN_INIT", "0"));
    if (!status && !flags) open_count++;
    return status;
}
Status nvmlShutdown(void) {
    if (!open_count) return UNINITIALIZED;
    open_count--;
    return OK;
}
const char *nvmlErrorString(Status status) { return status == NOT_SUPPORTED ? "Not Supported" : "another error"; }
Status nvmlSystemGetDriverVersion(char *version, unsigned length) {
    NEEDS("DriverVersion", NULL);
    snprintf(version, length, "580.159.03");
    return OK;
}
Status nvmlDeviceGetHandleByIndex_v2(unsigned index, const Device **device) {
    NEEDS("HandleByIndex", NULL);
    if (index >= (unsigned)count()) return INVALID;
    *device = &devices[index];
    return OK;
}
Status nvmlDeviceGetHandleByUUID(const char *uuid, const Device **device) {
    NEEDS("HandleByUUID", NULL);
    for (int index = 0; index < count(); index++)
        if (!strcmp(devices[index].uuid, uuid)) {
            *device = &devices[index];
            return OK;
        }
    return NOT_FOUND;
}
Status nvmlDeviceGetName(const Device *device, char *name, unsigned length) {
    NEEDS("Name", device);
    snprintf(name, length, "%s", device->name);
    return OK;
}

/* A number for each question; MHz, degrees Celsius, milliwatts. */
#define ANSWER(name, number)                                             \
    Status nvmlDeviceGet##name(const Device *device, unsigned *value) {  \
        NEEDS(#name, device);                                            \
        *value = number;                                                 \
        return OK;                                                       \
    }
ANSWER(PowerUsage, 76123)
ANSWER(PowerManagementLimit, 700000)
ANSWER(PersistenceMode, 1)
ANSWER(ComputeMode, 3)
ANSWER(PerformanceState, device == devices ? 2 : 32)
#define ANSWER_OF_KIND(name, number)                                                    \
    Status nvmlDeviceGet##name(const Device *device, unsigned kind, unsigned *value) {  \
        NEEDS(#name, device);                                                           \
        *value = number;                                                                \
        return OK;                                                                      \
    }
ANSWER_OF_KIND(ClockInfo, kind == 1 ? 1410 : kind == 2 ? 3201 : 0)
ANSWER_OF_KIND(MaxClockInfo, kind == 1 ? 1980 : kind == 2 ? 3202 : 0)
ANSWER_OF_KIND(Temperature, kind == 0 ? 61 : 0)
Status nvmlDeviceGetMigMode(const Device *device, unsigned *now, unsigned *next) {
    NEEDS("MigMode", device);
    *now = 0, *next = 1;
    return OK;
}
#ifdef OLDER
#define REASONS nvmlDeviceGetCurrentClocksThrottleReasons
#else
#define REASONS nvmlDeviceGetCurrentClocksEventReasons
#endif
Status REASONS(const Device *device, Long *bits) {
    NEEDS("Reasons", device);
    *bits = 0x24; /* power cap, and thermal slowdown by software */
    return OK;
}

Status nvmlDeviceGetFieldValues(const Device *device, int number, Value *values) {
    NEEDS("FieldValues", device);
    const char *where = set("STAND_IN_FIELDS", "late");
    for (Value *value = values; value < values + number; value++) {
        int late = value->field >= 269 && value->field <= 271, early = value->field >= 251 && value->field <= 253;
        int counts = value->field == 74 || (late && strcmp(where, "early")) || (early && strcmp(where, "late"));
        value->status = strcmp(where, "none") ? OK : NOT_SUPPORTED;
        value->type = counts ? UNSIGNED_LONG_LONG : UNSIGNED_INT; /* else a setting of power smoothing */
        value->value = counts ? value->field * 1000000ull + 999 : 1; /* nanoseconds */
    }
    return OK;
}
