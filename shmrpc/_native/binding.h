/* binding.h: what the files of the Python binding share. */
#ifndef SHMRPC_BINDING_H
#define SHMRPC_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "ring.h"
#include "wake.h"

struct native_state {
    PyObject *corrupt; /* RingCorrupt */
    PyTypeObject *producer;
    PyTypeObject *consumer;
    PyTypeObject *releaser;
    PyTypeObject *reaper;
    PyTypeObject *view;
    PyTypeObject *block;
    PyTypeObject *ledger;
    PyTypeObject *pending_call;
    PyObject *cancelled_error; /* asyncio.CancelledError */
    PyObject *future;          /* asyncio.Future */
    PyObject *enter_task;      /* asyncio's own means for foreign tasks */
    PyObject *leave_task;
};

/* The two mappings that every object of this module works on. Acquired in tp_new, released by close() or dealloc. */
struct mapping_pair {
    Py_buffer own;  /* my segment, writable */
    Py_buffer peer; /* the peer's segment, read-only */
    bool open;
};

int mapping_pair_open(struct mapping_pair *pair, PyObject *own, PyObject *peer);
void mapping_pair_close(struct mapping_pair *pair);
bool mapping_pair_check(const struct mapping_pair *pair); /* sets ValueError when closed */

/* Whether [offset, offset + bytes) lies in the buffer, behind the cursor page, and is aligned; sets ValueError. */
bool range_in_buffer(const Py_buffer *buffer, Py_ssize_t offset, Py_ssize_t bytes, const char *what);
bool power_of_two(Py_ssize_t value, const char *what);

static inline shm_word *own_word(const struct mapping_pair *pair, size_t offset)
{
    return (shm_word *)(void *)((uint8_t *)pair->own.buf + offset);
}

static inline const shm_word *peer_word(const struct mapping_pair *pair, size_t offset)
{
    return (const shm_word *)(const void *)((const uint8_t *)pair->peer.buf + offset);
}

struct native_state *native_state_of(PyTypeObject *type);
PyObject *raise_corrupt(struct native_state *state, enum shm_status status, uint64_t got, uint64_t allowed);

int add_producer_type(PyObject *module, struct native_state *state);
int add_consumer_type(PyObject *module, struct native_state *state);
int add_release_types(PyObject *module, struct native_state *state);
int add_ledger_types(PyObject *module, struct native_state *state);
int add_view_type(PyObject *module, struct native_state *state);
int add_call_types(PyObject *module, struct native_state *state);
int add_first_step(PyObject *module, struct native_state *state);
int add_requester_type(PyObject *module);
#ifdef SHMRPC_STEPS
int add_steps(PyObject *module);
#endif

/* What Producer.send answers; ring.py names the same numbers. */
enum { SEND_QUIET = 0, SEND_RING = 1, SEND_FULL = 2, SEND_LARGE = 3 };

int producer_publish(PyObject *producer, struct shm_record *record, PyObject *payload);
PyObject *pending_call_new(struct native_state *state, PyObject *loop, unsigned long long call_id, PyObject *method,
                           unsigned long long deadline_ns);

/* Ends a PendingCall and runs its waiter at once; in loop callbacks only. -1: the waiter raised what the loop must see. */
int pending_call_answer(PyObject *call, PyObject *answer);
PyObject *watch(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* Publishes the release of a block for a View that dies, and rings if the peer waits for room. Nothing once the Releaser
 * is closed. Never raises, and keeps the exception that is set; what the peer did wrong is noted as `corrupt`.
 */
void releaser_send_home(PyObject *releaser, uint64_t block, uint64_t generation);
void releaser_count_opened(PyObject *releaser, uint32_t count);

/* A View that reports its death to nobody, until view_release_to. */
PyObject *view_open(struct native_state *state, PyObject *mapping, Py_ssize_t offset, Py_ssize_t nbytes, uint64_t block,
                    uint64_t generation, bool writable);
void view_release_to(PyObject *view, PyObject *releaser);
PyObject *address_of(PyObject *module, PyObject *object);

/* The payload that lends what an exporter shows, if that is a matter of looking it up; *lease is its number. NULL without
 * an exception: it is not.
 */
PyObject *ledger_refer_quickly(PyObject *ledger, PyObject *exporter, PyObject *method, PyObject *body, PyObject **lease);
void ledger_undo(PyObject *ledger, PyObject *lease); /* keeps the exception that is set */

PyObject *open_references(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *pack_references(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* Whether the interpreter is about to end, so that no more Python may run. */
static inline bool interpreter_is_finalizing(void)
{
#if PY_VERSION_HEX >= 0x030d0000
    return Py_IsFinalizing() != 0;
#else
    return _Py_IsFinalizing() != 0;
#endif
}

#endif
