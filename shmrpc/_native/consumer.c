/* consumer.c: Consumer, the receiving end of a record ring, as Python sees it, and watch, which looks at many of them. */
#include "binding.h"

#include <sched.h>
#include <time.h>

typedef struct {
    PyObject_HEAD
    struct mapping_pair maps;
    struct shm_consumer ring;
    struct shm_sleeper doorbell; /* my doorbell epoch */
    struct shm_ringer room;      /* the peer's want-room epoch */
    Py_ssize_t inline_limit;
    uint64_t handled; /* end of the record that is being handled, or was last */
    char room_due;
    char broken;
} ConsumerObject;

static PyObject *consumer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"own", "peer", "ring_offset", "ring_bytes", "inline_limit", NULL};
    PyObject *own, *peer;
    Py_ssize_t offset, size, limit;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOnnn", names, &own, &peer, &offset, &size, &limit))
        return NULL;
    ConsumerObject *self = (ConsumerObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (mapping_pair_open(&self->maps, own, peer) < 0 || !power_of_two(size, "a ring") ||
        !range_in_buffer(&self->maps.peer, offset, size, "the ring")) {
        Py_DECREF(self);
        return NULL;
    }
    self->inline_limit = limit;
    self->ring.ring = (const uint8_t *)self->maps.peer.buf + offset;
    self->ring.size = (uint64_t)size;
    self->ring.tail_word = peer_word(&self->maps, SHM_CURSOR_TAIL);
    self->ring.head_word = own_word(&self->maps, SHM_CURSOR_HEAD);
    self->doorbell.word = own_word(&self->maps, SHM_CURSOR_DOORBELL_EPOCH);
    self->room.word = peer_word(&self->maps, SHM_CURSOR_ROOM_EPOCH);
    return (PyObject *)self;
}

static void consumer_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    mapping_pair_close(&((ConsumerObject *)op)->maps);
    type->tp_free(op);
    Py_DECREF(type);
}

enum { DISPATCH_CHUNK = 64, DISPATCH_KINDS = 128 };

struct taken {
    struct shm_record record;
    PyObject *payload;
    uint64_t end; /* position in the ring */
};

/* Copies out up to `most` records and gives their room back; -1 on error. */
static int take_chunk(ConsumerObject *self, struct taken *chunk, long most)
{
    int count = 0;
    while (count < most) {
        struct shm_consumer before = self->ring;
        const uint8_t *payload;
        enum shm_status status = shm_consumer_take(&self->ring, &chunk[count].record, &payload);
        uint32_t length = chunk[count].record.length;
        if (status == SHM_OK && (Py_ssize_t)length > self->inline_limit)
            status = SHM_BAD_RECORD;
        if (status == SHM_EMPTY)
            break;
        if (status != SHM_OK) {
            self->ring = before;
            if (count)
                break; /* what came before is good; the next call raises */
            raise_corrupt(native_state_of(Py_TYPE(self)), status, shm_load_relaxed(self->ring.tail_word),
                          self->ring.committed + self->ring.size);
            return -1;
        }
        chunk[count].payload = PyBytes_FromStringAndSize((const char *)payload, (Py_ssize_t)length);
        if (!chunk[count].payload) {
            self->ring = before;
            break;
        }
        SHM_STEP(payload_copied);
        chunk[count].end = self->ring.head;
        count++;
    }
    if (shm_consumer_commit(&self->ring))
        self->room_due |= (char)shm_ringer_must_ring(&self->room);
    if (PyErr_Occurred()) {
        while (count)
            Py_DECREF(chunk[--count].payload);
        return -1;
    }
    return count;
}

/* A plain reply to a call that somebody awaits. 1: answered; 0: not such a record; -1: the waiter raised. */
static int answer_pending(PyTypeObject *pending_type, PyObject *pending, const struct taken *taken)
{
    if (taken->record.kind != SHM_KIND_REPLY || taken->record.flags)
        return 0;
    PyObject *call_id = PyLong_FromUnsignedLongLong(taken->record.call_id);
    if (!call_id)
        return -1;
    PyObject *call = PyDict_GetItemWithError(pending, call_id); /* borrowed */
    int answered = call ? 0 : PyErr_Occurred() ? -1 : 0;
    if (call && Py_IS_TYPE(call, pending_type)) {
        Py_INCREF(call);
        answered = PyDict_DelItem(pending, call_id);
        if (answered == 0)
            answered = pending_call_answer(call, taken->payload) < 0 ? -1 : 1;
        Py_DECREF(call);
    }
    Py_DECREF(call_id);
    return answered;
}

static int call_handler(struct native_state *state, PyObject *handlers, const struct taken *taken)
{
    const struct shm_record *record = &taken->record;
    if (record->kind >= DISPATCH_KINDS) {
        PyErr_Format(state->corrupt, "the peer sent a record of kind %d, the highest is %d", record->kind,
                     DISPATCH_KINDS - 1);
        return -1;
    }
    PyObject *handler = PyTuple_GET_ITEM(handlers, record->kind + (record->flags & SHM_FLAG_IN_BLOCK) * DISPATCH_KINDS);
    PyObject *arguments[5] = {
        PyLong_FromLong(record->flags),
        PyLong_FromLong(record->method),
        PyLong_FromUnsignedLongLong(record->call_id),
        PyLong_FromUnsignedLongLong(record->deadline_ns),
        taken->payload,
    };
    PyObject *result = NULL;
    if (arguments[0] && arguments[1] && arguments[2] && arguments[3])
        result = PyObject_Vectorcall(handler, arguments, 5, NULL);
    for (int i = 0; i < 4; i++)
        Py_XDECREF(arguments[i]);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

static PyObject *consumer_dispatch(ConsumerObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyTuple_CheckExact(args[1]) || PyTuple_GET_SIZE(args[1]) != 2 * DISPATCH_KINDS ||
        !PyDict_CheckExact(args[2])) {
        PyErr_Format(PyExc_TypeError, "dispatch takes a budget, a tuple of %d handlers and a dict", 2 * DISPATCH_KINDS);
        return NULL;
    }
    long budget = PyLong_AsLong(args[0]);
    if (budget == -1 && PyErr_Occurred())
        return NULL;
    struct native_state *state = native_state_of(Py_TYPE(self));
    if (self->broken) {
        PyErr_SetString(state->corrupt, "the peer broke the rules, which was found together with the end of the process");
        return NULL;
    }
    PyObject *type = NULL, *value = NULL, *traceback = NULL; /* what is for the loop, after the rest of the records */
    long total = 0;
    bool broken = false;
    Py_INCREF(self);
    while (total < budget && !broken) {
        if (!mapping_pair_check(&self->maps)) {
            if (total) /* closed by what was dispatched */
                PyErr_Clear();
            broken = true;
            break;
        }
        struct taken chunk[DISPATCH_CHUNK];
        long most = budget - total < DISPATCH_CHUNK ? budget - total : DISPATCH_CHUNK;
        int taken = take_chunk(self, chunk, most);
        for (int i = 0; i < taken; i++) {
            self->handled = chunk[i].end;
            if (!broken && self->maps.open) { /* what was dispatched may have closed the channel: the rest is nobody's */
                int answered = answer_pending(state->pending_call, args[2], &chunk[i]);
                if (answered == 0 && call_handler(state, args[1], &chunk[i]) < 0) {
                    broken = PyErr_ExceptionMatches(PyExc_Exception); /* else it ends the process, not the channel */
                    answered = broken ? 0 : -1;
                }
                if (answered < 0) {
                    if (!type)
                        PyErr_Fetch(&type, &value, &traceback);
                    PyErr_Clear();
                }
            }
            SHM_STEP(record_handled);
            Py_DECREF(chunk[i].payload);
        }
        broken |= taken < 0;
        if (taken < most)
            break;
        total += taken;
    }
    Py_DECREF(self);
    if (type) {
        if (PyErr_Occurred()) { /* both: the process ends first, and should it go on, the channel is broken still */
            self->broken = 1;
            PyErr_Clear();
        }
        PyErr_Restore(type, value, traceback);
    }
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *consumer_ready(ConsumerObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->maps.open && (self->broken || shm_consumer_ready(&self->ring)));
}

static PyObject *consumer_arm(ConsumerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!mapping_pair_check(&self->maps))
        return NULL;
    shm_sleeper_arm(&self->doorbell);
    bool ready = shm_consumer_ready(&self->ring);
    SHM_STEP(consumer_looked);
    if (!ready)
        Py_RETURN_TRUE;
    shm_sleeper_disarm(&self->doorbell);
    Py_RETURN_FALSE;
}

static PyObject *consumer_published(ConsumerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!mapping_pair_check(&self->maps))
        return NULL;
    return PyLong_FromUnsignedLongLong(shm_consumer_published(&self->ring));
}

static PyObject *consumer_disarm(ConsumerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!mapping_pair_check(&self->maps))
        return NULL;
    shm_sleeper_disarm(&self->doorbell);
    Py_RETURN_NONE;
}

static PyObject *consumer_close(ConsumerObject *self, PyObject *Py_UNUSED(ignored))
{
    mapping_pair_close(&self->maps);
    Py_RETURN_NONE;
}

static PyObject *consumer_get_room_due(ConsumerObject *self, void *Py_UNUSED(closure))
{
    char due = self->room_due;
    self->room_due = 0;
    return PyBool_FromLong(due);
}

static PyMethodDef consumer_methods[] = {
    {"dispatch", (PyCFunction)(void (*)(void))consumer_dispatch, METH_FASTCALL,
     PyDoc_STR("dispatch(budget, handlers, pending)\n\n"
               "Take up to `budget` records. A plain reply answers the PendingCall of its id in the dict `pending`; for every\n"
               "other record handlers[kind], or handlers[128 + kind] for a payload in a block, is called with\n"
               "(flags, method, call_id, deadline_ns, payload). Call it from a loop callback: waiters run inside of it.")},
    {"ready", (PyCFunction)(void (*)(void))consumer_ready, METH_NOARGS, PyDoc_STR("Whether there is something to take.")},
    {"arm", (PyCFunction)(void (*)(void))consumer_arm, METH_NOARGS,
     PyDoc_STR("Declare 'ring me' and look once more. True: sleep; False: something came, and the epoch is disarmed.")},
    {"published", (PyCFunction)(void (*)(void))consumer_published, METH_NOARGS,
     PyDoc_STR("published() -> int\n\n"
               "Where the peer's records end now. It covers all that came before whatever else of the peer was seen already.\n"
               "Compare it with `handled`; it is not checked.")},
    {"disarm", (PyCFunction)(void (*)(void))consumer_disarm, METH_NOARGS, PyDoc_STR("Declare 'awake'.")},
    {"close", (PyCFunction)(void (*)(void))consumer_close, METH_NOARGS, PyDoc_STR("Let go of both mappings.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef consumer_members[] = {
    {"handled", T_ULONGLONG, offsetof(ConsumerObject, handled), READONLY,
     PyDoc_STR("Where the last record ends that dispatch gave to its handler: bytes since the beginning of the connection.")},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef consumer_getset[] = {
    {"room_due", (getter)(void (*)(void))consumer_get_room_due, NULL,
     PyDoc_STR("Whether the last take made room that the peer waits for; reading it clears it."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot consumer_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Consumer(own, peer, ring_offset, ring_bytes, inline_limit)\n\n"
                                  "The receiving end of the record ring in the peer's segment.")},
    {Py_tp_new, (void *)consumer_new},
    {Py_tp_dealloc, (void *)consumer_dealloc},
    {Py_tp_methods, consumer_methods},
    {Py_tp_members, consumer_members},
    {Py_tp_getset, consumer_getset},
    {0, NULL},
};

static PyType_Spec consumer_spec = {
    .name = "shmrpc._native.Consumer",
    .basicsize = sizeof(ConsumerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = consumer_slots,
};

int add_consumer_type(PyObject *module, struct native_state *state)
{
    state->consumer = (PyTypeObject *)PyType_FromModuleAndSpec(module, &consumer_spec, NULL);
    return state->consumer ? PyModule_AddType(module, state->consumer) : -1;
}

/* ---- watch ------------------------------------------------------------------------------------------------------ */

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool any_ready(PyObject *consumers)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(consumers); i++) {
        ConsumerObject *consumer = (ConsumerObject *)PyList_GET_ITEM(consumers, i);
        if (consumer->maps.open && shm_consumer_ready(&consumer->ring))
            return true;
    }
    return false;
}

enum { YIELD_NS = 1000 };

PyObject *watch(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    struct native_state *state = PyModule_GetState(module);
    if (count != 2 || !PyList_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "watch takes a list of Consumers and a time in nanoseconds");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[0]); i++)
        if (!Py_IS_TYPE(PyList_GET_ITEM(args[0], i), state->consumer)) {
            PyErr_SetString(PyExc_TypeError, "watch takes a list of Consumers");
            return NULL;
        }
    long long spin_ns = PyLong_AsLongLong(args[1]);
    if (spin_ns == -1 && PyErr_Occurred())
        return NULL;
    if (any_ready(args[0]))
        Py_RETURN_TRUE;
    if (spin_ns <= 0)
        Py_RETURN_FALSE;
    int64_t now = monotonic_ns(), until = now + spin_ns;
    while (now < until) {
        int64_t yield_at = now + YIELD_NS;
        do {
            shm_pause();
            if (any_ready(args[0]))
                Py_RETURN_TRUE;
            now = monotonic_ns();
        } while (now < yield_at);
        sched_yield(); /* a peer on this very core gets to run; where there is none, it costs a system call */
        if (any_ready(args[0]))
            Py_RETURN_TRUE;
        now = monotonic_ns();
    }
    Py_RETURN_FALSE;
}
