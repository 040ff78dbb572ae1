// Threads that share the phases of an inference, and never wait for one that the system has suspended before it began a share.
//
// A phase is cut into as many shares as there are threads. A thread takes its own share first, so that it finds in its cache what it
// left there; when that is done it takes any share that nobody has begun. A phase is over when all its shares are done, whoever did
// them: a thread that is suspended between two shares holds nobody up, and on its return it joins the phase that the others have
// reached. A waiting thread spins for some microseconds and then sleeps, since on a busy machine spinning takes time from the thread
// that is waited for.
//
// A batch whose images are shared is one phase: a share is whatever images its thread can get, one after the other, each of them computed
// in a lane of the thread's own, by a team of one.
#pragma once

#include <stdint.h>

namespace cnet {

struct Team;  // in team.h

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
