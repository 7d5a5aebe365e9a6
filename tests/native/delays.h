/* delays.h: what the plain programs do at the numbered steps of shmrpc/_native/steps.h, in a build with SHMRPC_STEPS.
 *
 * Each thread chooses a step by its random numbers, is late at it for a while, and chooses another. So every window
 * between two accesses is held open in turn while the other thread goes on. SHMRPC_SEED in the environment says which
 * steps and how late; the two threads synchronise by nothing in here, which the thread sanitizer would see as order.
 */
#ifndef DELAYS_H
#define DELAYS_H

#ifdef SHMRPC_STEPS
#include <sched.h>
#include <stdbool.h>
#include <time.h>

#include "atomics.h"
#include "check.h"
#include "steps.h"

enum { PASSAGES_PER_CHOICE = 150, LONGEST_LINGER = 3000, NAP_NS = 20000 };

static _Thread_local struct {
    uint64_t random;
    unsigned left; /* passages until the next choice */
    enum shm_step_name late_at;
    bool passed[SHM_STEPS];
} delays;

static shm_word delayed_at[SHM_STEPS];

/* Begins the random numbers of one thread. */
static inline void delays_begin(uint64_t thread)
{
    const char *seed = getenv("SHMRPC_SEED");
    delays.random = (seed ? strtoull(seed, NULL, 10) : 1) * 2 + thread;
    delays.random = delays.random * UINT64_C(0x9e3779b97f4a7c15) | 1;
    delays.left = PASSAGES_PER_CHOICE;
}

void shm_step(enum shm_step_name step)
{
    if (!delays.random) /* before and after the two threads */
        return;
    delays.passed[step] = true;
    if (delays.left-- == 0) {
        delays.left = PASSAGES_PER_CHOICE;
        do
            delays.late_at = (enum shm_step_name)(1 + random_below(&delays.random, SHM_STEPS - 1));
        while (!delays.passed[delays.late_at]); /* one that this thread comes by */
    }
    if (step != delays.late_at)
        return;
    shm_store_relaxed(&delayed_at[step], shm_load_relaxed(&delayed_at[step]) + 1);
    switch (random_below(&delays.random, 8)) {
    case 0: {
        const struct timespec nap = {.tv_nsec = NAP_NS};
        nanosleep(&nap, NULL);
        break;
    }
    case 1:
    case 2:
        sched_yield();
        break;
    default:
        for (uint64_t turns = random_below(&delays.random, LONGEST_LINGER); turns; turns--)
            __asm__ volatile("" ::: "memory");
    }
}

/* Prints at which steps the threads were late, for the test to read. */
static inline void delays_report(void)
{
    static const char *const names[SHM_STEPS] = {
        "none",
#define STEP_NAME(name) #name,
        SHM_EACH_STEP(STEP_NAME)
#undef STEP_NAME
    };
    printf("late at");
    for (int step = 1; step < SHM_STEPS; step++)
        if (shm_load_relaxed(&delayed_at[step]))
            printf(" %s:%" PRIu64, names[step], shm_load_relaxed(&delayed_at[step]));
    printf("\n");
}

#else
static inline void delays_begin(uint64_t thread)
{
    (void)thread;
}

static inline void delays_report(void)
{
}
#endif

#endif
