/* stress_scribbler.c [records]: a producer that rewrites headers and its position while they are being read.
 *
 * What a consumer has checked must be what it uses: the record that it hands out lies inside of the ring whatever the
 * other thread writes meanwhile.
 */
#define _GNU_SOURCE
#include "segments.h"
#include "threads.h"

enum { RING = 512 };

struct run {
    struct segments both;
    uint64_t records;
    atomic_bool over;
};

static void *scribble(void *argument)
{
    struct run *run = argument;
    shm_word *words = (shm_word *)(void *)run->both.mine.ring;
    uint64_t random = 3;
    while (!atomic_load_explicit(&run->over, memory_order_relaxed)) {
        for (size_t i = 0; i < 64; i++) {
            const struct shm_record record = {
                .length = (uint32_t)(random_below(&random, 2) ? random_below(&random, 64) : next_random(&random)),
                .kind = (uint8_t)random_below(&random, 8),
            };
            shm_store_relaxed(words + random_below(&random, RING / 8), shm_record_word0(&record));
        }
    }
    return NULL;
}

static void *consume(void *argument)
{
    struct run *run = argument;
    uint64_t random = 4, good = 0;
    while (good < run->records) { /* what is left of the records after the scribbling */
        struct shm_consumer consumer = consumer_of(&run->both);
        shm_store_relaxed(word_of(&run->both.mine, SHM_CURSOR_TAIL), random_below(&random, RING / 8 + 1) * 8);
        struct shm_record record;
        const uint8_t *payload;
        while (shm_consumer_take(&consumer, &record, &payload) == SHM_OK) {
            CHECK(record.kind != SHM_KIND_PAD);
            CHECK(payload >= run->both.mine.ring && payload + record.length <= run->both.mine.ring + RING);
            CHECK(consumer.head <= consumer.tail);
            good++;
        }
    }
    atomic_store(&run->over, true);
    return NULL;
}

int main(int argc, char **argv)
{
    struct run run = {.both = segments_new(RING, 8), .records = number_argument(argc, argv, 1, 1000000)};
    memset(run.both.mine.ring, 0, RING);
    run_both(scribble, consume, &run);
    segments_free(&run.both);
    return 0;
}
