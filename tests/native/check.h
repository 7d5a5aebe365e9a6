/* check.h: a test harness of one page. A program lists its tests in a table; the first untrue CHECK ends it. */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                  \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CHECK_EQUAL(got, expected)                                                                                     \
    do {                                                                                                               \
        uint64_t got_ = (uint64_t)(got), expected_ = (uint64_t)(expected);                                             \
        if (got_ != expected_) {                                                                                       \
            fprintf(stderr, "%s:%d: %s is %" PRIu64 ", expected %s, %" PRIu64 "\n", __FILE__, __LINE__, #got, got_,    \
                    #expected, expected_);                                                                             \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

struct test {
    const char *name;
    void (*run)(void);
};

#define TEST(function) {#function, function}
#define RUN(tests) run_tests(tests, sizeof(tests) / sizeof *(tests))

static inline int run_tests(const struct test *tests, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        printf("%s\n", tests[i].name);
        fflush(stdout);
        tests[i].run();
    }
    return 0;
}

/* An argument of the program that is a number, or a default. */
static inline uint64_t number_argument(int argc, char **argv, int position, uint64_t otherwise)
{
    return argc > position ? strtoull(argv[position], NULL, 10) : otherwise;
}

/* Numbers that look random and are the same in every run (xorshift64*). */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

static inline uint64_t random_below(uint64_t *state, uint64_t limit)
{
    return (next_random(state) >> 16) % limit;
}

#endif
