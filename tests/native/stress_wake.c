/* stress_wake.c records|announced|room|blocks [rounds]: two threads sleep and wake each other; is every wake-up rung for?
 *
 *   records    the consumer sleeps until a record is published
 *   announced  the same, and before every other publication the producer rings ahead
 *   room       the producer sleeps until the consumer has given room back
 *   blocks     the producer sleeps until a block has come home
 *
 * In each round the ringer waits until the sleeper has begun to fall asleep, and publishes at about the moment at which
 * the sleeper arms: both stores are then on their way while both sides load. That moment is found by trial, since it
 * depends on the processor: the sleeper arms a little later after each round in which it slept, and a little earlier after
 * each in which it did not. The sleep is a real one, in poll() on an
 * eventfd. When it lasts suspiciously long the sleeper judges it: what it waits for is there, every publication has been
 * decided upon (see `begun` and `decided`), and the doorbell is silent; then nobody will ever ring, and the wake-up is
 * lost. So a slow machine makes no false alarm. The exit status says how it ended: 0 none was lost, 3 one was, and the
 * program stopped there.
 */
#define _GNU_SOURCE
#include "segments.h"
#include "threads.h"

#include <poll.h>
#include <sys/eventfd.h>

enum { RING = 4096, ENTRIES = 8, LOST = 3, SUSPICIOUS_MS = 5 };
enum { BURDEN = 8, JITTER = 128, STEP = 4, MOST_LEAD = 1 << 14 }; /* turns of `linger` */

struct run {
    struct segments both;
    enum { RECORDS, ANNOUNCED, ROOM, BLOCKS } what;
    uint64_t rounds;
    int bell;             /* an eventfd */
    shm_word begun;       /* publications, counted before and */
    shm_word decided;     /* after the ringer has found out whether to ring, and has rung */
    shm_word asleep;      /* the round in which the sleeper is about to arm */
    shm_word woken;       /* the last round that it saw the end of; UINT64_MAX: it stops */
    uint64_t sleeps, rings;
    bool lost;
    struct { _Alignas(64) shm_word word; } burden[BURDEN]; /* a cache line each */
};

static struct shm_consumer consumer;
static struct shm_producer producer;
static struct shm_releaser releaser;
static struct shm_reaper reaper;

/* A few cycles a turn on every processor: a pause instruction takes from a handful to two hundred of them. */
static void linger(uint64_t turns)
{
    for (; turns; turns--)
        __asm__ volatile("" ::: "memory");
}

/* ---- what is published and found, for each of the three ---- */

static void push_full_record(void)
{
    static const uint8_t payload[RING];
    const struct shm_record record = {.length = RING - SHM_RECORD_HEADER, .kind = 1};
    CHECK_EQUAL(shm_producer_push(&producer, &record, payload), SHM_OK);
}

static void take_record(void)
{
    struct shm_record record;
    const uint8_t *payload;
    CHECK_EQUAL(shm_consumer_take(&consumer, &record, &payload), SHM_OK);
}

static void publish(const struct run *run, uint64_t round)
{
    const struct shm_record small = {.kind = 1, .call_id = round};
    switch (run->what) {
    case RECORDS:
    case ANNOUNCED:
        CHECK_EQUAL(shm_producer_push(&producer, &small, ""), SHM_OK);
        break;
    case ROOM:
        take_record();
        CHECK(shm_consumer_commit(&consumer));
        break;
    case BLOCKS:
        CHECK_EQUAL(shm_releaser_push(&releaser, round, round), SHM_OK);
        break;
    }
}

/* One look of the sleeper, which takes nothing. */
static bool there(const struct run *run)
{
    switch (run->what) {
    case RECORDS:
    case ANNOUNCED:
        return shm_consumer_ready(&consumer);
    case ROOM:
        CHECK_EQUAL(shm_producer_refresh(&producer), SHM_OK);
        return producer.head == producer.tail;
    default:
        return shm_load_acquire(reaper.tail_word) != reaper.head;
    }
}

/* Takes what came, so that the next round begins with nothing there. */
static void consume(const struct run *run)
{
    uint64_t block, generation;
    switch (run->what) {
    case RECORDS:
    case ANNOUNCED:
        take_record();
        CHECK(shm_consumer_commit(&consumer));
        break;
    case ROOM:
        push_full_record();
        break;
    case BLOCKS:
        CHECK_EQUAL(shm_reaper_take(&reaper, &block, &generation), SHM_OK);
        break;
    }
}

/* ---- the two threads ---- */

/* Stores that take long, since the other thread wrote the same cache lines last. A store behind them waits in the store
 * buffer, and what is loaded meanwhile overtakes it: that is what the fences are there for.
 */
static void burden_stores(struct run *run, uint64_t round)
{
    for (int i = 0; i < BURDEN; i++)
        shm_store_relaxed(&run->burden[i].word, round);
}

static void wait_for(const struct run *run, const shm_word *word, uint64_t round)
{
    for (int i = 1; shm_load_acquire(word) < round && shm_load_acquire(&run->woken) != UINT64_MAX; i++)
        if (i % 1024)
            shm_pause();
        else
            sched_yield();
}

static void *ring(void *argument)
{
    struct run *run = argument;
    struct shm_ringer ringer = run->what <= ANNOUNCED ? record_ringer_of(&run->both) : room_ringer_of(&run->both);
    struct shm_announcer announcer = {0};
    uint64_t random = 11;
    for (uint64_t round = 1;; round++) {
        wait_for(run, &run->asleep, round);
        bool tells = run->what == ANNOUNCED && round % 2;
        if (tells) { /* at any time from before it arms until it has woken for it and sleeps again */
            linger(random_below(&random, MOST_LEAD));
            if (shm_announce(&announcer, &ringer))
                CHECK_EQUAL(eventfd_write(run->bell, 1), 0);
            linger(random_below(&random, MOST_LEAD));
        }
        burden_stores(run, round);
        linger(random_below(&random, JITTER));
        shm_store_relaxed(&run->begun, round);
        publish(run, round);
        bool rings = shm_ringer_must_ring(&ringer);
        shm_announced(&announcer, rings);
        announcer.sit_out = 0;
        if (rings) {
            run->rings++;
            CHECK_EQUAL(eventfd_write(run->bell, 1), 0);
        }
        atomic_store(&run->decided, round);
        wait_for(run, &run->woken, round);
        if (shm_load_acquire(&run->woken) == UINT64_MAX)
            return NULL;
    }
}

static bool rung_within(const struct run *run, int milliseconds)
{
    struct pollfd bell = {.fd = run->bell, .events = POLLIN};
    int ready = poll(&bell, 1, milliseconds);
    CHECK(ready >= 0);
    return ready == 1;
}

/* Sleeps until the bell rings. Whether it did; false: what was waited for is there, and the bell will never ring. */
static bool sleep_on(struct run *run)
{
    while (!rung_within(run, SUSPICIOUS_MS)) {
        if (!there(run))
            continue;
        uint64_t decided = atomic_load(&run->decided);
        if (decided == atomic_load(&run->begun) && !rung_within(run, 0))
            return false;
    }
    eventfd_t rings;
    CHECK_EQUAL(eventfd_read(run->bell, &rings), 0);
    run->sleeps++;
    return true;
}

static void *sleep_and_wake(void *argument)
{
    struct run *run = argument;
    struct shm_sleeper sleeper = run->what <= ANNOUNCED ? record_sleeper_of(&run->both) : room_sleeper_of(&run->both);
    uint64_t random = 12, lead = 0, sleeps = 0;
    for (uint64_t round = 1; round <= run->rounds && !run->lost; round++) {
        shm_store_release(&run->asleep, round);
        linger(lead + random_below(&random, JITTER));
        burden_stores(run, round);
        shm_sleeper_arm(&sleeper);
        while (!there(run)) {
            if (!sleep_on(run)) {
                run->lost = true;
                break;
            }
            shm_sleeper_disarm(&sleeper); /* the order of a waking sleeper: clear the bell, disarm, look */
            if (!there(run))
                shm_sleeper_arm(&sleeper);
        }
        shm_sleeper_disarm(&sleeper);
        CHECK(there(run));
        consume(run);
        shm_store_release(&run->woken, round);
        if (run->sleeps > sleeps) /* it armed too early to race with the publication */
            lead = lead + STEP < MOST_LEAD ? lead + STEP : 0;
        else if (lead >= STEP)
            lead -= STEP;
        sleeps = run->sleeps;
    }
    shm_store_release(&run->woken, UINT64_MAX);
    return NULL;
}

int main(int argc, char **argv)
{
    static struct run run;
    const char *const names[] = {"records", "announced", "room", "blocks"};
    CHECK(argc > 1);
    for (int i = 0; i < 4; i++)
        if (strcmp(argv[1], names[i]) == 0)
            run.what = i;
    CHECK(strcmp(argv[1], names[run.what]) == 0);
    run.rounds = number_argument(argc, argv, 2, 30000);
    run.both = segments_new(RING, ENTRIES);
    run.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(run.bell >= 0);
    consumer = consumer_of(&run.both);
    producer = producer_of(&run.both);
    releaser = releaser_of(&run.both);
    reaper = reaper_of(&run.both);
    if (run.what == ROOM)
        push_full_record();
    run_both(ring, sleep_and_wake, &run);
    printf("%" PRIu64 " sleeps, %" PRIu64 " rings%s\n", run.sleeps, run.rings, run.lost ? ", and a lost wake-up" : "");
    close(run.bell);
    segments_free(&run.both);
    if (run.lost)
        return LOST;
    CHECK(run.sleeps > 0); /* else nothing was tested */
    return 0;
}
