/* threads.h: two threads on one mapping, each on a processor of its own, and a watchdog. Needs _GNU_SOURCE.
 *
 * A thread that polls must yield now and then: the machine may have one processor, or none to spare.
 */
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "check.h"
#include "delays.h"

enum { WATCHDOG_SECONDS = 100 };

struct other_thread {
    void *(*run)(void *);
    void *argument;
};

/* Keeps the calling thread on the first or second processor that this process may use, if there are two. A scheduler that
 * is busy puts a thread where the one runs that woke it, and two threads on one processor never meet.
 */
static inline void stay_on_processor(int which)
{
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) < 2)
        return;
    CPU_ZERO(&one);
    for (int processor = 0; CPU_COUNT(&one) == 0; processor++)
        if (CPU_ISSET(processor, &allowed) && which-- == 0)
            CPU_SET(processor, &one);
    CHECK_EQUAL(sched_setaffinity(0, sizeof one, &one), 0);
}

static inline void *run_other(void *argument)
{
    const struct other_thread *other = argument;
    stay_on_processor(1);
    delays_begin(2);
    return other->run(other->argument);
}

/* Runs `other` beside `here`, each with the same argument. A program that hangs is ended by SIGALRM. */
static inline void run_both(void *(*other)(void *), void *(*here)(void *), void *argument)
{
    pthread_t thread;
    struct other_thread beside = {other, argument};
    alarm(WATCHDOG_SECONDS);
    CHECK_EQUAL(pthread_create(&thread, NULL, run_other, &beside), 0);
    stay_on_processor(0);
    delays_begin(1);
    here(argument);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    alarm(0);
    delays_report();
}

#endif
