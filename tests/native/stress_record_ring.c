/* stress_record_ring.c [records]: one thread produces numbered records with checksums, another consumes them.
 *
 * Under the thread sanitizer this is the test of the publishes [tail] and [head]: a reader that sees a position without
 * everything that was written before it is a data race.
 */
#define _GNU_SOURCE
#include "segments.h"
#include "threads.h"

enum { RING = 4096, LONGEST = 700 };

struct run {
    struct segments both;
    uint64_t records;
};

static uint64_t checksum(const uint8_t *bytes, size_t count)
{
    uint64_t sum = UINT64_C(14695981039346656037); /* FNV-1a */
    for (size_t i = 0; i < count; i++)
        sum = (sum ^ bytes[i]) * UINT64_C(1099511628211);
    return sum;
}

static void *produce(void *argument)
{
    struct run *run = argument;
    struct shm_producer producer = producer_of(&run->both);
    uint64_t random = 1;
    for (uint64_t number = 1; number <= run->records; number++) {
        uint8_t payload[LONGEST + 8];
        const uint32_t length = (uint32_t)random_below(&random, LONGEST);
        for (uint32_t i = 0; i < length; i += 8) {
            uint64_t word = next_random(&random);
            memcpy(payload + i, &word, sizeof word);
        }
        const struct shm_record record = {
            .length = length,
            .kind = (uint8_t)(1 + number % 255),
            .flags = (uint8_t)(number * 3),
            .method = (uint16_t)(number * 5),
            .call_id = number,
            .deadline_ns = checksum(payload, length),
        };
        enum shm_status status;
        while ((status = shm_producer_push(&producer, &record, payload)) == SHM_FULL)
            sched_yield();
        CHECK_EQUAL(status, SHM_OK);
    }
    return NULL;
}

static void *consume(void *argument)
{
    struct run *run = argument;
    struct shm_consumer consumer = consumer_of(&run->both);
    uint64_t random = 2;
    for (uint64_t number = 1; number <= run->records;) {
        struct shm_record record;
        const uint8_t *payload;
        enum shm_status status = shm_consumer_take(&consumer, &record, &payload);
        if (status == SHM_OK) {
            CHECK_EQUAL(record.call_id, number);
            CHECK_EQUAL(record.kind, (uint8_t)(1 + number % 255));
            CHECK_EQUAL(record.flags, (uint8_t)(number * 3));
            CHECK_EQUAL(record.method, (uint16_t)(number * 5));
            CHECK_EQUAL(record.deadline_ns, checksum(payload, record.length));
            number++;
        } else {
            CHECK_EQUAL(status, SHM_EMPTY);
            sched_yield();
        }
        if (status == SHM_EMPTY || random_below(&random, 4) == 0)
            shm_consumer_commit(&consumer);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct run run = {.both = segments_new(RING, 8), .records = number_argument(argc, argv, 1, 200000)};
    run_both(produce, consume, &run);
    printf("%" PRIu64 " records arrived in order and whole\n", run.records);
    segments_free(&run.both);
    return 0;
}
