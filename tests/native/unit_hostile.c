/* unit_hostile.c: what the two ends of a record ring make of a peer that lies about positions and records. */
#include "segments.h"

enum { RING = 512 };

static struct segments both;
static struct shm_producer producer;
static struct shm_consumer consumer;
static unsigned seen[SHM_BAD_RECORD + 1]; /* every status that a test of this file has met */

static void open_ring(void)
{
    both = segments_new(RING, 8);
    producer = producer_of(&both);
    consumer = consumer_of(&both);
}

static enum shm_status push(uint32_t length)
{
    static const uint8_t payload[RING];
    const struct shm_record record = {.length = length, .kind = 1};
    enum shm_status status = shm_producer_push(&producer, &record, payload);
    seen[status]++;
    return status;
}

static enum shm_status take(void)
{
    struct shm_record record;
    const uint8_t *payload;
    uint64_t head = consumer.head;
    enum shm_status status = shm_consumer_take(&consumer, &record, &payload);
    seen[status]++;
    if (status == SHM_OK)
        CHECK(payload >= both.mine.ring && payload + record.length <= both.mine.ring + RING);
    else
        CHECK(consumer.head == head || consumer.head % RING == 0); /* at most a padding was passed */
    return status;
}

static void say_head(uint64_t head)
{
    shm_store_relaxed(word_of(&both.theirs, SHM_CURSOR_HEAD), head);
}

static void say_tail(uint64_t tail)
{
    shm_store_relaxed(word_of(&both.mine, SHM_CURSOR_TAIL), tail);
}

/* A record header at a position of the ring, as a lying producer would write it. */
static void say_record(uint64_t at, uint8_t kind, uint32_t length)
{
    const struct shm_record record = {.length = length, .kind = kind};
    uint64_t word = shm_record_word0(&record);
    memcpy(both.mine.ring + at, &word, sizeof word);
}

static void fill(void)
{
    while (push(40) == SHM_OK)
        ;
}

static void a_head_beyond_what_was_published_is_refused(void)
{
    open_ring();
    fill();
    say_head(producer.tail + 8);
    CHECK_EQUAL(push(40), SHM_BAD_HEAD);
    say_head(UINT64_MAX & ~(uint64_t)7);
    CHECK_EQUAL(push(40), SHM_BAD_HEAD);
    CHECK_EQUAL(producer.head, 0);
    say_head(producer.tail);
    CHECK_EQUAL(push(40), SHM_OK);
    segments_free(&both);
}

static void a_head_that_goes_back_is_refused(void)
{
    open_ring();
    fill();
    say_head(64);
    CHECK_EQUAL(push(40), SHM_OK);
    CHECK_EQUAL(producer.head, 64);
    say_head(56);
    CHECK_EQUAL(push(40), SHM_BAD_HEAD);
    CHECK_EQUAL(producer.head, 64);
    segments_free(&both);
}

static void a_head_between_two_words_is_refused(void)
{
    open_ring();
    fill();
    say_head(65);
    CHECK_EQUAL(push(40), SHM_BAD_HEAD);
    segments_free(&both);
}

static void a_tail_that_goes_back_is_refused(void)
{
    open_ring();
    CHECK_EQUAL(push(8), SHM_OK);
    CHECK_EQUAL(take(), SHM_OK);
    say_tail(0);
    CHECK(shm_consumer_ready(&consumer)); /* something changed: the next take says what */
    CHECK_EQUAL(take(), SHM_BAD_TAIL);
    segments_free(&both);
}

static void a_tail_further_away_than_the_ring_is_long_is_refused(void)
{
    open_ring();
    say_tail(RING + 8);
    CHECK_EQUAL(take(), SHM_BAD_TAIL);
    say_tail(UINT64_MAX & ~(uint64_t)7);
    CHECK_EQUAL(take(), SHM_BAD_TAIL);
    say_record(0, 1, RING - SHM_RECORD_HEADER);
    say_tail(RING);
    CHECK_EQUAL(take(), SHM_OK);
    segments_free(&both);
}

static void a_tail_may_not_run_over_what_was_taken_and_not_committed(void)
{
    open_ring();
    say_record(0, 1, 8);
    say_tail(32);
    CHECK_EQUAL(take(), SHM_OK);
    say_tail(RING + 32); /* the producer has not been told that these 32 bytes are free */
    CHECK_EQUAL(take(), SHM_BAD_TAIL);
    segments_free(&both);
}

static void a_tail_between_two_words_is_refused(void)
{
    open_ring();
    say_tail(33);
    CHECK_EQUAL(take(), SHM_BAD_TAIL);
    segments_free(&both);
}

static void a_record_longer_than_what_was_published_is_refused(void)
{
    open_ring();
    say_record(0, 1, 9);
    say_tail(32);
    CHECK_EQUAL(take(), SHM_BAD_RECORD);
    say_record(0, 1, UINT32_MAX);
    CHECK_EQUAL(take(), SHM_BAD_RECORD);
    say_record(0, 1, 8);
    CHECK_EQUAL(take(), SHM_OK);
    segments_free(&both);
}

static void a_tail_in_the_middle_of_a_header_is_refused(void)
{
    open_ring();
    say_record(0, 1, 0);
    say_tail(8);
    CHECK_EQUAL(take(), SHM_BAD_RECORD);
    say_tail(16);
    CHECK_EQUAL(take(), SHM_BAD_RECORD);
    segments_free(&both);
}

static void a_record_that_runs_over_the_end_of_the_ring_is_refused(void)
{
    open_ring();
    say_record(0, 1, RING - SHM_RECORD_HEADER - 16);
    say_tail(RING - 16);
    CHECK_EQUAL(take(), SHM_OK);
    CHECK(shm_consumer_commit(&consumer));
    say_record(RING - 16, 1, 0); /* a header of 24 bytes, 16 before the end */
    say_tail(RING + 64);
    CHECK_EQUAL(take(), SHM_BAD_RECORD);
    segments_free(&both);
}

static void padding_must_reach_exactly_to_the_end(void)
{
    open_ring();
    const uint32_t wrong[] = {0, 8, RING - 8, RING + 8, UINT32_MAX};
    say_tail(RING);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        say_record(0, SHM_KIND_PAD, wrong[i]);
        CHECK_EQUAL(take(), SHM_BAD_RECORD);
    }
    segments_free(&both);
}

static void padding_must_have_been_published(void)
{
    open_ring();
    say_record(0, SHM_KIND_PAD, RING);
    say_tail(64);
    CHECK_EQUAL(take(), SHM_BAD_RECORD);
    segments_free(&both);
}

static void a_ring_of_nothing_but_padding_ends(void)
{
    open_ring();
    say_record(0, SHM_KIND_PAD, RING);
    say_tail(RING);
    CHECK_EQUAL(take(), SHM_EMPTY);
    say_tail(RING * 2); /* without a commit the producer may not go on */
    CHECK_EQUAL(take(), SHM_BAD_TAIL);
    CHECK(shm_consumer_commit(&consumer));
    CHECK_EQUAL(take(), SHM_EMPTY);
    segments_free(&both);
}

/* Whatever bytes and positions a peer writes: no access outside of the ring (the sanitizer looks), and an end. */
static void garbage_is_read_inside_of_the_ring_or_refused(void)
{
    uint64_t random = 99;
    for (int round = 0; round < 20000; round++) {
        open_ring();
        for (size_t at = 0; at < RING; at += 8) {
            struct shm_record record = {
                .length = (uint32_t)(random_below(&random, 4) ? random_below(&random, RING) : next_random(&random)),
                .kind = (uint8_t)random_below(&random, 3),
            };
            uint64_t word = shm_record_word0(&record);
            memcpy(both.mine.ring + at, &word, sizeof word);
        }
        uint64_t tail = 0;
        for (int step = 0; step < 20; step++) {
            tail += random_below(&random, 8) ? random_below(&random, RING / 8) * 8 : next_random(&random);
            say_tail(tail);
            for (int takes = 0; take() == SHM_OK; takes++) {
                CHECK(takes <= RING / SHM_RECORD_HEADER);
            }
            shm_consumer_commit(&consumer);
            CHECK(consumer.head <= consumer.tail && consumer.tail - consumer.head <= RING);
        }
        segments_free(&both);
    }
}

static void garbage_in_the_peers_cursor_never_moves_the_producer_over_unread_records(void)
{
    uint64_t random = 5;
    for (int round = 0; round < 20000; round++) {
        open_ring();
        for (int step = 0; step < 20; step++) {
            say_head(random_below(&random, 4) ? random_below(&random, RING / 4) * 8 : next_random(&random));
            push((uint32_t)random_below(&random, 200));
            CHECK(producer.head <= producer.tail && producer.tail - producer.head <= RING);
            CHECK_EQUAL(shm_load_relaxed(producer.tail_word), producer.tail);
        }
        segments_free(&both);
    }
}

static void every_status_was_met(void)
{
    for (size_t status = 0; status < sizeof seen / sizeof *seen; status++)
        CHECK(seen[status] > 0);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(a_head_beyond_what_was_published_is_refused),
        TEST(a_head_that_goes_back_is_refused),
        TEST(a_head_between_two_words_is_refused),
        TEST(a_tail_that_goes_back_is_refused),
        TEST(a_tail_further_away_than_the_ring_is_long_is_refused),
        TEST(a_tail_may_not_run_over_what_was_taken_and_not_committed),
        TEST(a_tail_between_two_words_is_refused),
        TEST(a_record_longer_than_what_was_published_is_refused),
        TEST(a_tail_in_the_middle_of_a_header_is_refused),
        TEST(a_record_that_runs_over_the_end_of_the_ring_is_refused),
        TEST(padding_must_reach_exactly_to_the_end),
        TEST(padding_must_have_been_published),
        TEST(a_ring_of_nothing_but_padding_ends),
        TEST(garbage_is_read_inside_of_the_ring_or_refused),
        TEST(garbage_in_the_peers_cursor_never_moves_the_producer_over_unread_records),
        TEST(every_status_was_met),
    };
    return RUN(tests);
}
