/* threads.h: two threads on one mapping, and a watchdog.
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

static inline void *run_other(void *argument)
{
    const struct other_thread *other = argument;
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
    delays_begin(1);
    here(argument);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    alarm(0);
    delays_report();
}

#endif
