/* fuzz_record_ring.c: both ends of the record ring against a peer whose words and bytes are the input.
 *
 * The first byte chooses the size of the rings, and whether another thread writes over everything that is the peer's
 * meanwhile; the second says how long the script of operations is that follows; the rest is what the peer's ring holds at
 * first. Without the other thread the
 * parser is compared with a second one in this file, which has the same rules in other words; with it, all that counts is
 * that what is handed out lies where it must.
 */
#define _GNU_SOURCE
#include "fuzz.h"

enum { SIZES = 4, SMALLEST = 64, SCRIBBLED = 4, LONGEST_PAYLOAD = 700 };

typedef unsigned __int128 wide;

/* What the second parser knows. */
struct model {
    const uint8_t *ring;
    uint64_t size, head, committed, seen;
};

/* `mine` is the peer's ring here, which I read; `theirs` is mine, which I fill. Those that the other thread writes into are
 * never used without it: it may be late.
 */
static struct segments rings[SIZES + SCRIBBLED];
static struct scribbled scribbled[SIZES + SCRIBBLED];

static const struct segments *rings_of(size_t which)
{
    struct segments *s = &rings[which];
    if (!s->ring_bytes) {
        *s = segments_new((uint64_t)SMALLEST << which % SIZES, 8);
        scribbled[which] = (struct scribbled){
            .ring = (shm_word *)(void *)s->mine.ring,
            .ring_words = s->ring_bytes / sizeof(shm_word),
            .positions = {word_of(&s->mine, SHM_CURSOR_TAIL), word_of(&s->mine, SHM_CURSOR_HEAD)},
        };
    }
    return s;
}

static uint64_t little_endian(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    while (bytes--)
        value = value << 8 | at[bytes];
    return value;
}

static enum shm_status model_take(struct model *m, uint64_t said, struct shm_record *record, uint64_t *payload)
{
    for (;;) {
        if (m->head == m->seen) {
            if (said < m->seen || said & 7 || (wide)said > (wide)m->committed + m->size)
                return SHM_BAD_TAIL;
            m->seen = said;
            if (m->head == m->seen)
                return SHM_EMPTY;
        }
        uint64_t at = m->head % m->size;
        const uint8_t *header = m->ring + at;
        *record = (struct shm_record){
            .length = (uint32_t)little_endian(header, 4),
            .kind = header[4],
            .flags = header[5],
            .method = (uint16_t)little_endian(header + 6, 2),
        };
        if (record->kind == 0) { /* padding ends where the ring does */
            if (at + record->length != m->size || (wide)m->head + record->length > m->seen)
                return SHM_BAD_RECORD;
            m->head += record->length;
            continue;
        }
        wide end = (wide)m->head + 24 + (record->length + UINT64_C(7)) / 8 * 8;
        if (end > m->seen || at + (end - m->head) > m->size)
            return SHM_BAD_RECORD;
        record->call_id = little_endian(header + 8, 8);
        record->deadline_ns = little_endian(header + 16, 8);
        *payload = at + 24;
        m->head = (uint64_t)end;
        return SHM_OK;
    }
}

static enum shm_status take(struct shm_consumer *consumer, struct model *model, bool alone)
{
    struct shm_record record, expected;
    const uint8_t *payload;
    uint64_t expected_at;
    uint64_t said = shm_load_relaxed(consumer->tail_word);
    enum shm_status status = shm_consumer_take(consumer, &record, &payload);
    MUST(consumer->head <= consumer->tail && consumer->tail - consumer->committed <= consumer->size);
    if (status == SHM_OK) {
        MUST(payload >= consumer->ring + SHM_RECORD_HEADER && payload <= consumer->ring + consumer->size);
        MUST(record.length <= (uint64_t)(consumer->ring + consumer->size - payload));
        MUST(record.kind != SHM_KIND_PAD);
        touch(payload, record.length);
    }
    if (alone) {
        MUST(model_take(model, said, &expected, &expected_at) == status);
        MUST(model->head == consumer->head && model->seen == consumer->tail);
        if (status == SHM_OK)
            MUST(payload == consumer->ring + expected_at && memcmp(&record, &expected, sizeof record) == 0);
    }
    return status;
}

/* What a push must answer when the peer says that it has read up to `said`. */
static enum shm_status model_push(const struct shm_producer *producer, uint64_t said, uint32_t length)
{
    uint64_t need = 24 + (length + UINT64_C(7)) / 8 * 8, left = producer->size - producer->tail % producer->size;
    uint64_t end = producer->tail + (need > left ? left : 0) + need;
    if (end <= producer->head + producer->size)
        return SHM_OK; /* without asking */
    if (said < producer->head || said > producer->tail || said & 7)
        return SHM_BAD_HEAD;
    return end <= said + producer->size ? SHM_OK : SHM_FULL;
}

/* One push. What the peer has not read yet, by what it said and was believed, stays; a push that fails changes nothing. */
static void push(struct shm_producer *producer, uint64_t number, bool alone)
{
    static const uint8_t payload[LONGEST_PAYLOAD];
    static uint8_t before[SMALLEST << SIZES];
    const struct shm_record record = {.length = (uint32_t)(number % LONGEST_PAYLOAD), .kind = 1, .call_id = number};
    memcpy(before, producer->ring, producer->size);
    uint64_t tail = producer->tail;
    enum shm_status expected = model_push(producer, shm_load_relaxed(producer->head_word), record.length);
    enum shm_status status = shm_producer_push(producer, &record, payload);
    MUST(status == expected || !alone);
    MUST(producer->head <= producer->tail && producer->tail - producer->head <= producer->size);
    MUST(shm_load_relaxed(producer->tail_word) == producer->tail);
    if (status != SHM_OK)
        MUST(producer->tail == tail && memcmp(before, producer->ring, producer->size) == 0);
    for (uint64_t at = producer->head; at < tail; at++)
        MUST(before[at % producer->size] == producer->ring[at % producer->size]);
    if (status == SHM_OK) {
        uint64_t began = producer->tail - shm_record_bytes(record.length);
        MUST(began >= tail && began % producer->size + shm_record_bytes(record.length) <= producer->size);
        MUST(little_endian(producer->ring + began % producer->size + 8, 8) == number);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct script script = {input, size};
    size_t which = next_byte(&script) % (SIZES + SCRIBBLED), script_bytes = next_byte(&script);
    const struct segments *s = rings_of(which);
    bool alone = which < SIZES;
    size_t begin = script.left < script_bytes ? script.left : script_bytes, rest = script.left - begin;
    memset(s->mine.ring, 0, s->ring_bytes);
    if (rest)
        memcpy(s->mine.ring, script.at + begin, rest < s->ring_bytes ? rest : s->ring_bytes);
    script.left = begin;
    shm_word *said_tail = word_of(&s->mine, SHM_CURSOR_TAIL), *said_head = word_of(&s->mine, SHM_CURSOR_HEAD);
    shm_store_relaxed(said_tail, 0);
    shm_store_relaxed(said_head, 0);
    shm_store_relaxed(word_of(&s->theirs, SHM_CURSOR_TAIL), 0);
    shm_store_relaxed(word_of(&s->theirs, SHM_CURSOR_HEAD), 0);
    struct shm_consumer consumer = consumer_of(s);
    struct model model = {.ring = s->mine.ring, .size = s->ring_bytes};
    struct shm_producer producer = {.ring = s->theirs.ring,
                                    .size = s->ring_bytes,
                                    .tail_word = word_of(&s->theirs, SHM_CURSOR_TAIL),
                                    .head_word = said_head};
    if (!alone)
        scribble_begin(&scribbled[which], input, size);
    while (script.left) {
        uint64_t number;
        switch (next_byte(&script) % 8) {
        case 0:
            shm_store_relaxed(said_tail, next_number(&script, 8));
            break;
        case 1:
            shm_store_relaxed(said_tail, shm_load_relaxed(said_tail) + next_number(&script, 8));
            break;
        case 2:
        case 3:
            for (uint64_t taken = 0; take(&consumer, &model, alone) == SHM_OK; taken++)
                MUST(taken <= s->ring_bytes / SHM_RECORD_HEADER);
            break;
        case 4:
            MUST(shm_consumer_commit(&consumer) == (model.head != model.committed) || !alone);
            MUST(shm_load_relaxed(consumer.head_word) == consumer.head);
            model.committed = model.head;
            break;
        case 5:
            number = next_number(&script, 1) % s->ring_bytes;
            s->mine.ring[number] = next_byte(&script);
            break;
        case 6:
            shm_store_relaxed(said_head, next_number(&script, 8));
            break;
        default:
            push(&producer, next_number(&script, 3), alone);
        }
    }
    scribble_end();
    return 0;
}
