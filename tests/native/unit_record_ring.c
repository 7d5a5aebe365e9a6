/* unit_record_ring.c: the record ring between two ends that keep the rules. */
#include "segments.h"

enum { RING = 512 };

static struct segments both;
static struct shm_producer producer;
static struct shm_consumer consumer;

static void open_ring(void)
{
    both = segments_new(RING, 8);
    producer = producer_of(&both);
    consumer = consumer_of(&both);
}

static enum shm_status push(uint64_t call_id, uint32_t length)
{
    uint8_t payload[RING];
    struct shm_record record = {.length = length, .kind = 1, .call_id = call_id};
    memset(payload, (int)call_id, sizeof payload);
    return shm_producer_push(&producer, &record, payload);
}

/* Takes one record and checks that it is the one of push(). */
static void take(uint64_t call_id, uint32_t length)
{
    struct shm_record record;
    const uint8_t *payload = NULL;
    CHECK_EQUAL(shm_consumer_take(&consumer, &record, &payload), SHM_OK);
    CHECK_EQUAL(record.call_id, call_id);
    CHECK_EQUAL(record.length, length);
    CHECK(payload >= both.mine.ring && payload + length <= both.mine.ring + RING);
    for (uint32_t i = 0; i < length; i++)
        CHECK_EQUAL(payload[i], (uint8_t)call_id);
}

static enum shm_status take_status(void)
{
    struct shm_record record;
    const uint8_t *payload;
    return shm_consumer_take(&consumer, &record, &payload);
}

static void a_new_ring_is_empty(void)
{
    open_ring();
    CHECK(!shm_consumer_ready(&consumer));
    CHECK_EQUAL(take_status(), SHM_EMPTY);
    CHECK(!shm_consumer_commit(&consumer));
    segments_free(&both);
}

static void every_field_of_a_record_arrives(void)
{
    open_ring();
    const struct shm_record sent = {
        .length = 5,
        .kind = UINT8_MAX,
        .flags = 0xa5,
        .method = UINT16_MAX - 1,
        .call_id = UINT64_MAX - 2,
        .deadline_ns = UINT64_MAX - 3,
    };
    struct shm_record got;
    const uint8_t *payload;
    CHECK_EQUAL(shm_producer_push(&producer, &sent, "12345"), SHM_OK);
    CHECK(shm_consumer_ready(&consumer));
    CHECK_EQUAL(shm_consumer_take(&consumer, &got, &payload), SHM_OK);
    CHECK_EQUAL(got.length, sent.length);
    CHECK_EQUAL(got.kind, sent.kind);
    CHECK_EQUAL(got.flags, sent.flags);
    CHECK_EQUAL(got.method, sent.method);
    CHECK_EQUAL(got.call_id, sent.call_id);
    CHECK_EQUAL(got.deadline_ns, sent.deadline_ns);
    CHECK(memcmp(payload, "12345", 5) == 0);
    segments_free(&both);
}

static void a_record_takes_its_header_and_its_payload_in_full_words(void)
{
    CHECK_EQUAL(shm_record_bytes(0), 24);
    CHECK_EQUAL(shm_record_bytes(1), 32);
    CHECK_EQUAL(shm_record_bytes(8), 32);
    CHECK_EQUAL(shm_record_bytes(9), 40);
    CHECK_EQUAL(shm_record_bytes(UINT32_MAX), (UINT64_C(1) << 32) + 24);
}

static void an_empty_record_needs_no_payload(void)
{
    open_ring();
    const struct shm_record record = {.kind = 4, .call_id = 9};
    CHECK_EQUAL(shm_producer_push(&producer, &record, NULL), SHM_OK);
    take(9, 0);
    segments_free(&both);
}

static void nothing_is_seen_before_it_is_published(void)
{
    open_ring();
    const struct shm_record record = {.length = 0, .kind = 1};
    uint64_t word = shm_record_word0(&record);
    memcpy(both.mine.ring, &word, sizeof word);
    CHECK(!shm_consumer_ready(&consumer));
    CHECK_EQUAL(take_status(), SHM_EMPTY);
    segments_free(&both);
}

static void a_full_ring_refuses_and_writes_nothing(void)
{
    open_ring();
    uint64_t sent = 0;
    while (push(sent + 1, 40) == SHM_OK)
        sent++;
    CHECK_EQUAL(sent, RING / shm_record_bytes(40));
    uint8_t before[RING];
    memcpy(before, both.mine.ring, RING);
    uint64_t tail = shm_load_relaxed(producer.tail_word);
    CHECK_EQUAL(push(99, 40), SHM_FULL);
    CHECK(memcmp(before, both.mine.ring, RING) == 0);
    CHECK_EQUAL(shm_load_relaxed(producer.tail_word), tail);
    for (uint64_t i = 1; i <= sent; i++)
        take(i, 40);
    CHECK_EQUAL(take_status(), SHM_EMPTY);
    segments_free(&both);
}

static void every_byte_of_the_ring_can_be_used(void)
{
    open_ring();
    CHECK_EQUAL(push(1, RING - SHM_RECORD_HEADER), SHM_OK);
    CHECK_EQUAL(producer.tail, RING);
    CHECK_EQUAL(push(2, 0), SHM_FULL);
    take(1, RING - SHM_RECORD_HEADER);
    CHECK(shm_consumer_commit(&consumer));
    CHECK_EQUAL(push(2, RING - SHM_RECORD_HEADER), SHM_OK);
    take(2, RING - SHM_RECORD_HEADER);
    segments_free(&both);
}

static void a_record_that_is_longer_than_the_ring_never_fits(void)
{
    open_ring();
    CHECK_EQUAL(push(1, RING - SHM_RECORD_HEADER + 1), SHM_FULL);
    static volatile uint32_t largest = UINT32_MAX; /* volatile: else the compiler warns of the copy that is never made */
    const struct shm_record record = {.length = largest, .kind = 1};
    CHECK_EQUAL(shm_producer_push(&producer, &record, ""), SHM_FULL);
    CHECK_EQUAL(producer.tail, 0);
    segments_free(&both);
}

static void room_comes_back_with_the_commit_and_not_before(void)
{
    open_ring();
    CHECK_EQUAL(push(1, RING - SHM_RECORD_HEADER), SHM_OK);
    take(1, RING - SHM_RECORD_HEADER);
    CHECK_EQUAL(push(2, 0), SHM_FULL); /* the payload may still be read */
    CHECK(shm_consumer_commit(&consumer));
    CHECK_EQUAL(shm_load_relaxed(consumer.head_word), RING);
    CHECK(!shm_consumer_commit(&consumer));
    CHECK_EQUAL(push(2, 0), SHM_OK);
    segments_free(&both);
}

static void a_record_that_does_not_fit_before_the_end_begins_at_the_start(void)
{
    open_ring();
    CHECK_EQUAL(push(1, 400), SHM_OK); /* 424 of 512 bytes: 88 are left */
    take(1, 400);
    CHECK(shm_consumer_commit(&consumer));
    CHECK_EQUAL(push(2, 80), SHM_OK); /* needs 104 */
    CHECK_EQUAL(producer.tail, RING + 104);
    take(2, 80);
    CHECK_EQUAL(consumer.head, RING + 104);
    segments_free(&both);
}

static void a_record_that_fits_exactly_before_the_end_is_not_padded(void)
{
    open_ring();
    CHECK_EQUAL(push(1, 400), SHM_OK);
    take(1, 400);
    CHECK(shm_consumer_commit(&consumer));
    CHECK_EQUAL(push(2, 64), SHM_OK);
    CHECK_EQUAL(producer.tail, RING);
    take(2, 64);
    segments_free(&both);
}

static void padding_counts_as_room_that_is_taken(void)
{
    open_ring();
    CHECK_EQUAL(push(1, 400), SHM_OK);
    take(1, 400); /* not committed: the 88 bytes at the end are all the room there is */
    CHECK_EQUAL(push(2, 80), SHM_FULL);
    CHECK_EQUAL(push(3, 64), SHM_OK);
    take(3, 64);
    segments_free(&both);
}

static void a_producer_reads_the_peers_cursor_only_when_the_ring_looks_full(void)
{
    open_ring();
    CHECK_EQUAL(push(1, 40), SHM_OK);
    take(1, 40);
    CHECK(shm_consumer_commit(&consumer));
    CHECK_EQUAL(push(2, 40), SHM_OK);
    CHECK_EQUAL(producer.head, 0);
    while (push(3, 40) == SHM_OK)
        ;
    CHECK_EQUAL(producer.head, shm_record_bytes(40));
    segments_free(&both);
}

static void readiness_counts_what_was_seen_but_not_taken(void)
{
    open_ring();
    CHECK_EQUAL(push(1, 8), SHM_OK);
    CHECK_EQUAL(push(2, 8), SHM_OK);
    take(1, 8);
    CHECK(shm_consumer_ready(&consumer));
    take(2, 8);
    CHECK(!shm_consumer_ready(&consumer));
    segments_free(&both);
}

static void what_was_published_can_be_compared_with_what_was_taken(void)
{
    open_ring();
    CHECK_EQUAL(shm_consumer_published(&consumer), consumer.head);
    CHECK_EQUAL(push(1, 8), SHM_OK);
    uint64_t first = shm_consumer_published(&consumer);
    CHECK_EQUAL(push(2, RING - 128), SHM_OK);
    CHECK(consumer.head < first && first < shm_consumer_published(&consumer));
    take(1, 8);
    CHECK_EQUAL(consumer.head, first);
    take(2, RING - 128);
    CHECK_EQUAL(consumer.head, shm_consumer_published(&consumer));
    CHECK(shm_consumer_commit(&consumer));
    CHECK_EQUAL(push(3, RING / 2), SHM_OK); /* with padding before it */
    take(3, RING / 2);
    CHECK_EQUAL(consumer.head, shm_consumer_published(&consumer));
    segments_free(&both);
}

static uint32_t length_of(uint64_t call_id)
{
    return (uint32_t)(call_id * 37 % 121);
}

static void records_of_all_sizes_keep_their_order_through_many_turns_of_the_ring(void)
{
    open_ring();
    uint64_t random = 42, pushed = 0, taken = 0;
    while (taken < 20000) {
        if (random_below(&random, 2) && push(pushed + 1, length_of(pushed + 1)) == SHM_OK)
            pushed++;
        if (pushed > taken && random_below(&random, 2)) {
            take(taken + 1, length_of(taken + 1));
            taken++;
        }
        if (random_below(&random, 3) == 0)
            shm_consumer_commit(&consumer);
    }
    CHECK(producer.tail > RING * 1000u);
    segments_free(&both);
}

static void positions_pass_four_gibibytes(void)
{
    open_ring();
    const uint64_t start = (UINT64_C(1) << 32) - RING;
    producer.tail = producer.head = consumer.head = consumer.tail = consumer.committed = start;
    shm_store_relaxed(producer.tail_word, start);
    shm_store_relaxed(consumer.head_word, start);
    for (uint64_t i = 1; i < 100; i++) {
        CHECK_EQUAL(push(i, 100), SHM_OK);
        take(i, 100);
        CHECK(shm_consumer_commit(&consumer));
    }
    CHECK(producer.tail > UINT64_C(1) << 32);
    segments_free(&both);
}

int main(void)
{
    static const struct test tests[] = {
        TEST(a_new_ring_is_empty),
        TEST(every_field_of_a_record_arrives),
        TEST(a_record_takes_its_header_and_its_payload_in_full_words),
        TEST(an_empty_record_needs_no_payload),
        TEST(nothing_is_seen_before_it_is_published),
        TEST(a_full_ring_refuses_and_writes_nothing),
        TEST(every_byte_of_the_ring_can_be_used),
        TEST(a_record_that_is_longer_than_the_ring_never_fits),
        TEST(room_comes_back_with_the_commit_and_not_before),
        TEST(a_record_that_does_not_fit_before_the_end_begins_at_the_start),
        TEST(a_record_that_fits_exactly_before_the_end_is_not_padded),
        TEST(padding_counts_as_room_that_is_taken),
        TEST(a_producer_reads_the_peers_cursor_only_when_the_ring_looks_full),
        TEST(readiness_counts_what_was_seen_but_not_taken),
        TEST(what_was_published_can_be_compared_with_what_was_taken),
        TEST(records_of_all_sizes_keep_their_order_through_many_turns_of_the_ring),
        TEST(positions_pass_four_gibibytes),
    };
    return RUN(tests);
}
