/* stress_release_ring.c [releases]: one thread sends blocks home, another takes them; see stress_record_ring.c.
 *
 * Before each block it publishes a record, which the other one must see the end of once it has taken the block.
 */
#define _GNU_SOURCE
#include "segments.h"
#include "threads.h"

struct run {
    struct segments both;
    uint64_t releases;
};

static void *release(void *argument)
{
    struct run *run = argument;
    struct shm_releaser releaser = releaser_of(&run->both);
    shm_word *tail = word_of(&run->both.theirs, SHM_CURSOR_TAIL);
    for (uint64_t block = 0; block < run->releases; block++) {
        enum shm_status status;
        shm_store_release(tail, block + 1); /* as shm_producer_push does, of records that are one byte long */
        while ((status = shm_releaser_push(&releaser, block, ~block)) == SHM_FULL)
            sched_yield();
        CHECK_EQUAL(status, SHM_OK);
    }
    return NULL;
}

static void *reap(void *argument)
{
    struct run *run = argument;
    struct shm_reaper reaper = reaper_of(&run->both);
    const struct shm_consumer consumer = {.tail_word = word_of(&run->both.theirs, SHM_CURSOR_TAIL)};
    for (uint64_t expected = 0; expected < run->releases;) {
        uint64_t block, generation;
        enum shm_status status = shm_reaper_take(&reaper, &block, &generation);
        if (status == SHM_OK) {
            CHECK_EQUAL(block, expected);
            CHECK_EQUAL(generation, ~expected);
            expected++;
            CHECK(shm_consumer_published(&consumer) >= expected);
        } else {
            CHECK_EQUAL(status, SHM_EMPTY);
            sched_yield();
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct run run = {.both = segments_new(64, 16), .releases = number_argument(argc, argv, 1, 500000)};
    run_both(release, reap, &run);
    printf("%" PRIu64 " blocks came home in order\n", run.releases);
    segments_free(&run.both);
    return 0;
}
