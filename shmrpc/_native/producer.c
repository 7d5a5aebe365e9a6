/* producer.c: Producer, the sending end of a record ring, as Python sees it. */
#include "binding.h"

typedef struct {
    PyObject_HEAD
    struct mapping_pair maps;
    struct shm_producer ring;
    struct shm_ringer doorbell; /* the peer's doorbell epoch */
    struct shm_announcer announcer;
    struct shm_sleeper room;    /* my want-room epoch */
    Py_ssize_t inline_limit;
    char corked;
} ProducerObject;

static PyObject *producer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"own", "peer", "ring_offset", "ring_bytes", "inline_limit", NULL};
    PyObject *own, *peer;
    Py_ssize_t offset, size, limit;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOnnn", names, &own, &peer, &offset, &size, &limit))
        return NULL;
    ProducerObject *self = (ProducerObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (mapping_pair_open(&self->maps, own, peer) < 0 || !power_of_two(size, "a ring") ||
        !range_in_buffer(&self->maps.own, offset, size, "the ring")) {
        Py_DECREF(self);
        return NULL;
    }
    self->inline_limit = limit;
    self->ring.ring = (uint8_t *)self->maps.own.buf + offset;
    self->ring.size = (uint64_t)size;
    self->ring.tail_word = own_word(&self->maps, SHM_CURSOR_TAIL);
    self->ring.head_word = peer_word(&self->maps, SHM_CURSOR_HEAD);
    self->doorbell.word = peer_word(&self->maps, SHM_CURSOR_DOORBELL_EPOCH);
    self->room.word = own_word(&self->maps, SHM_CURSOR_ROOM_EPOCH);
    return (PyObject *)self;
}

static void producer_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    mapping_pair_close(&((ProducerObject *)op)->maps);
    type->tp_free(op);
    Py_DECREF(type);
}

/* Publishes one record with its payload, whose length it sets; a SEND_ status, or -1 on error. */
int producer_publish(PyObject *op, struct shm_record *record, PyObject *payload)
{
    ProducerObject *self = (ProducerObject *)op;
    if (!mapping_pair_check(&self->maps))
        return -1;
    if (!PyBytes_CheckExact(payload)) {
        PyErr_SetString(PyExc_TypeError, "send takes its payload as bytes");
        return -1;
    }
    if (PyBytes_GET_SIZE(payload) > self->inline_limit)
        return SEND_LARGE;
    if (self->corked)
        return SEND_FULL;
    record->length = (uint32_t)PyBytes_GET_SIZE(payload);
    enum shm_status status = shm_producer_push(&self->ring, record, PyBytes_AS_STRING(payload));
    if (status == SHM_FULL)
        return SEND_FULL;
    if (status != SHM_OK) {
        raise_corrupt(native_state_of(Py_TYPE(self)), status, shm_load_relaxed(self->ring.head_word), self->ring.tail);
        return -1;
    }
    bool rings = shm_ringer_must_ring(&self->doorbell);
    shm_announced(&self->announcer, rings);
    return rings ? SEND_RING : SEND_QUIET;
}

static PyObject *producer_send(ProducerObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 6) {
        PyErr_Format(PyExc_TypeError, "send takes 6 arguments, not %zd", count);
        return NULL;
    }
    long kind = PyLong_AsLong(args[0]), flags = PyLong_AsLong(args[1]), method = PyLong_AsLong(args[2]);
    struct shm_record record = {
        .kind = (uint8_t)kind,
        .flags = (uint8_t)flags,
        .method = (uint16_t)method,
        .call_id = PyLong_AsUnsignedLongLong(args[3]),
        .deadline_ns = PyLong_AsUnsignedLongLong(args[4]),
    };
    if (PyErr_Occurred())
        return NULL;
    if (record.kind != kind || record.flags != flags || record.method != method || kind == SHM_KIND_PAD) {
        PyErr_Format(PyExc_OverflowError, "kind %ld, flags %ld or method %ld does not fit in a record", kind, flags, method);
        return NULL;
    }
    int status = producer_publish((PyObject *)self, &record, args[5]);
    return status < 0 ? NULL : PyLong_FromLong(status);
}

static PyObject *producer_announce(ProducerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!mapping_pair_check(&self->maps))
        return NULL;
    return PyBool_FromLong(shm_announce(&self->announcer, &self->doorbell));
}

static PyObject *producer_want_room(ProducerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!mapping_pair_check(&self->maps))
        return NULL;
    shm_sleeper_arm(&self->room);
    SHM_STEP(room_wanted);
    Py_RETURN_NONE;
}

static PyObject *producer_room_found(ProducerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!mapping_pair_check(&self->maps))
        return NULL;
    shm_sleeper_disarm(&self->room);
    SHM_STEP(room_found);
    Py_RETURN_NONE;
}

/* The records that the peer has not taken: (kind, call id) each, oldest first. Reads only my own memory. */
static PyObject *producer_unread(ProducerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!mapping_pair_check(&self->maps))
        return NULL;
    PyObject *found = PyList_New(0);
    if (!found)
        return NULL;
    enum shm_status status = shm_producer_refresh(&self->ring);
    if (status != SHM_OK) {
        Py_DECREF(found);
        return raise_corrupt(native_state_of(Py_TYPE(self)), status, shm_load_relaxed(self->ring.head_word),
                             self->ring.tail);
    }
    uint64_t at = self->ring.head;
    while (at < self->ring.tail && self->maps.open) { /* a finalizer that runs in between may close the channel */
        uint64_t offset = at & (self->ring.size - 1);
        uint64_t word = shm_ring_word(self->ring.ring + offset);
        uint8_t kind = (uint8_t)(word >> 32);
        if (kind == SHM_KIND_PAD) {
            at += self->ring.size - offset;
            continue;
        }
        if (shm_record_bytes((uint32_t)word) > self->ring.size - offset)
            break; /* a peer that lies about its position can point into the middle of a record */
        PyObject *entry = Py_BuildValue("(iK)", kind, (unsigned long long)shm_ring_word(self->ring.ring + offset + 8));
        if (!entry || PyList_Append(found, entry) < 0) {
            Py_XDECREF(entry);
            Py_DECREF(found);
            return NULL;
        }
        Py_DECREF(entry);
        at += shm_record_bytes((uint32_t)word);
    }
    return found;
}

static PyObject *producer_close(ProducerObject *self, PyObject *Py_UNUSED(ignored))
{
    mapping_pair_close(&self->maps);
    Py_RETURN_NONE;
}

static PyObject *producer_get_corked(ProducerObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->corked);
}

static int producer_set_corked(ProducerObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int corked = value ? PyObject_IsTrue(value) : 0;
    if (corked < 0)
        return -1;
    self->corked = (char)corked;
    return 0;
}

static PyMethodDef producer_methods[] = {
    {"send", (PyCFunction)(void (*)(void))producer_send, METH_FASTCALL,
     PyDoc_STR("send(kind, flags, method, call_id, deadline_ns, payload) -> status\n\n"
               "Append and publish one record. 0: done; 1: done, ring the doorbell; 2: no room; 3: over the inline limit.")},
    {"announce", (PyCFunction)(void (*)(void))producer_announce, METH_NOARGS,
     PyDoc_STR("announce() -> bool\n\nWhether to ring the doorbell ahead of a record that takes a while to be written.")},
    {"want_room", (PyCFunction)(void (*)(void))producer_want_room, METH_NOARGS,
     PyDoc_STR("Arm the want-room epoch; the caller tries once more before it waits for the doorbell.")},
    {"room_found", (PyCFunction)(void (*)(void))producer_room_found, METH_NOARGS,
     PyDoc_STR("Disarm the want-room epoch.")},
    {"unread", (PyCFunction)(void (*)(void))producer_unread, METH_NOARGS,
     PyDoc_STR("unread() -> [(kind, call_id), ...]: the records that the peer has not taken.")},
    {"close", (PyCFunction)(void (*)(void))producer_close, METH_NOARGS, PyDoc_STR("Let go of both mappings.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef producer_getset[] = {
    {"corked", (getter)(void (*)(void))producer_get_corked, (setter)(void (*)(void))producer_set_corked,
     PyDoc_STR("While true, send answers 2: older records wait in a queue, and must go first."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot producer_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Producer(own, peer, ring_offset, ring_bytes, inline_limit)\n\n"
                                  "The sending end of the record ring in my segment.")},
    {Py_tp_new, (void *)producer_new},
    {Py_tp_dealloc, (void *)producer_dealloc},
    {Py_tp_methods, producer_methods},
    {Py_tp_getset, producer_getset},
    {0, NULL},
};

static PyType_Spec producer_spec = {
    .name = "shmrpc._native.Producer",
    .basicsize = sizeof(ProducerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = producer_slots,
};

int add_producer_type(PyObject *module, struct native_state *state)
{
    state->producer = (PyTypeObject *)PyType_FromModuleAndSpec(module, &producer_spec, NULL);
    return state->producer ? PyModule_AddType(module, state->producer) : -1;
}
