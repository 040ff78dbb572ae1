// Threads that share the phases of an inference, and never wait for one that the system has put aside.
//
// A phase is cut into as many shares as there are threads. A thread takes its own share first, so that it finds in its cache what it
// left there; when that is done it takes any share that nobody has begun. A phase is over when all its shares are done, whoever did
// them: a thread that was put aside between two shares is not missed, and finds on its return which phase the others have come to.
// Whoever waits spins for some microseconds and then sleeps, since spinning on a busy machine takes the time of the one waited for.
#pragma once

#include <stdint.h>

namespace cnet {

struct Team;  // in threads.cpp

// One thread's view of the phases. They are numbered without end; numbers wrap and are compared by their difference.
struct Member {
    Team *team;
    int thread;
    uint32_t phase;
};

// The share to do next in this phase, or -1 when none is left to begin.
int claim(const Member &m);
void finish(const Member &m);
// Returns when the phase is over.
void meet(Member &m);
int shares_of(const Team &team);

}  // namespace cnet
