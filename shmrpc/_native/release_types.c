/* release_types.c: Releaser and Reaper, the two ends of a release ring, as Python sees them. */
#include "binding.h"

typedef struct {
    PyObject_HEAD
    struct mapping_pair maps;
    struct shm_releaser ring;
    struct shm_ringer room; /* the peer's want-room epoch */
    PyObject *on_ring;      /* what rings for a View that dies; NULL: nothing does */
    unsigned long long opened;
    char corrupt;
} ReleaserObject;

typedef struct {
    PyObject_HEAD
    struct mapping_pair maps;
    struct shm_reaper ring;
} ReaperObject;

static PyObject *releaser_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"own", "peer", "ring_offset", "entries", "on_ring", NULL};
    PyObject *own, *peer, *on_ring = Py_None;
    Py_ssize_t offset, entries;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOnn|O", names, &own, &peer, &offset, &entries, &on_ring))
        return NULL;
    ReleaserObject *self = (ReleaserObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (mapping_pair_open(&self->maps, own, peer) < 0 || !power_of_two(entries, "a release ring") ||
        !range_in_buffer(&self->maps.own, offset, entries * SHM_RELEASE_ENTRY, "the release ring")) {
        Py_DECREF(self);
        return NULL;
    }
    self->ring.ring = (uint8_t *)self->maps.own.buf + offset;
    self->ring.entries = (uint64_t)entries;
    self->ring.tail_word = own_word(&self->maps, SHM_CURSOR_RELEASE_TAIL);
    self->ring.head_word = peer_word(&self->maps, SHM_CURSOR_RELEASE_HEAD);
    self->room.word = peer_word(&self->maps, SHM_CURSOR_ROOM_EPOCH);
    self->on_ring = on_ring == Py_None ? NULL : Py_NewRef(on_ring);
    return (PyObject *)self;
}

/* Collectable, since on_ring may lead to whatever owns the Releaser. A View that lives keeps it from being collected: the
 * collector does not see the View's reference, and counts it as one from outside.
 */
static int releaser_traverse(ReleaserObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->on_ring);
    return 0;
}

static int releaser_clear(ReleaserObject *self)
{
    Py_CLEAR(self->on_ring);
    return 0;
}

static void releaser_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    releaser_clear((ReleaserObject *)op);
    mapping_pair_close(&((ReleaserObject *)op)->maps);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *releaser_release(ReleaserObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_Format(PyExc_TypeError, "release takes 2 arguments, not %zd", count);
        return NULL;
    }
    unsigned long long block = PyLong_AsUnsignedLongLong(args[0]);
    unsigned long long generation = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred() || !mapping_pair_check(&self->maps))
        return NULL;
    enum shm_status status = shm_releaser_push(&self->ring, block, generation);
    if (status != SHM_OK) /* full is impossible too: the ring holds as many entries as there are blocks */
        return raise_corrupt(native_state_of(Py_TYPE(self)), SHM_BAD_HEAD, shm_load_relaxed(self->ring.head_word),
                             self->ring.tail);
    return PyBool_FromLong(shm_ringer_must_ring(&self->room));
}

static void ring_for_room(PyObject *on_ring)
{
    PyObject *type, *value, *traceback; /* of whatever lets go of the View just now */
    PyErr_Fetch(&type, &value, &traceback);
    Py_INCREF(on_ring); /* it may close the Releaser */
    PyObject *result = PyObject_CallNoArgs(on_ring);
    if (!result)
        PyErr_WriteUnraisable(on_ring);
    Py_XDECREF(result);
    Py_DECREF(on_ring);
    PyErr_Restore(type, value, traceback);
}

void releaser_send_home(PyObject *op, uint64_t block, uint64_t generation)
{
    ReleaserObject *self = (ReleaserObject *)op;
    if (!self->maps.open)
        return;
    SHM_STEP(view_died);
    if (shm_releaser_push(&self->ring, block, generation) != SHM_OK)
        self->corrupt = 1; /* there is nobody here to tell it: the session looks */
    else if (self->on_ring && !interpreter_is_finalizing() && shm_ringer_must_ring(&self->room))
        ring_for_room(self->on_ring);
}

void releaser_count_opened(PyObject *releaser, uint32_t count)
{
    ((ReleaserObject *)releaser)->opened += count;
}

static PyObject *releaser_out(ReleaserObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLongLong((long long)(self->opened - self->ring.tail));
}

static PyObject *releaser_close(ReleaserObject *self, PyObject *Py_UNUSED(ignored))
{
    mapping_pair_close(&self->maps);
    releaser_clear(self);
    Py_RETURN_NONE;
}

static PyMethodDef releaser_methods[] = {
    {"release", (PyCFunction)(void (*)(void))releaser_release, METH_FASTCALL,
     PyDoc_STR("release(block, generation) -> bool\n\nSend one block home. True: ring the doorbell.")},
    {"close", (PyCFunction)(void (*)(void))releaser_close, METH_NOARGS, PyDoc_STR("Let go of both mappings.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef releaser_members[] = {
    {"pushed", T_ULONGLONG, offsetof(ReleaserObject, ring.tail), READONLY,
     PyDoc_STR("How many leases were released, by release() and by Views.")},
    {"opened", T_ULONGLONG, offsetof(ReleaserObject, opened), 0,
     PyDoc_STR("How many leases were met, by open_references and whoever else adds to it.")},
    {"corrupt", T_BOOL, offsetof(ReleaserObject, corrupt), READONLY,
     PyDoc_STR("Whether a View could not be released because of what the peer wrote.")},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef releaser_properties[] = {
    {"out", (getter)releaser_out, NULL, PyDoc_STR("How many leases were met and not released yet."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot releaser_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Releaser(own, peer, ring_offset, entries, on_ring=None)\n\n"
                                  "The sending end of the release ring in my segment. on_ring() is called, on any thread, when\n"
                                  "a View has died and the peer wants to be rung for it.")},
    {Py_tp_traverse, (void *)releaser_traverse},
    {Py_tp_clear, (void *)releaser_clear},
    {Py_tp_members, releaser_members},
    {Py_tp_getset, releaser_properties},
    {Py_tp_new, (void *)releaser_new},
    {Py_tp_dealloc, (void *)releaser_dealloc},
    {Py_tp_methods, releaser_methods},
    {0, NULL},
};

static PyType_Spec releaser_spec = {
    .name = "shmrpc._native.Releaser",
    .basicsize = sizeof(ReleaserObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = releaser_slots,
};

static PyObject *reaper_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"own", "peer", "ring_offset", "entries", NULL};
    PyObject *own, *peer;
    Py_ssize_t offset, entries;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOnn", names, &own, &peer, &offset, &entries))
        return NULL;
    ReaperObject *self = (ReaperObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (mapping_pair_open(&self->maps, own, peer) < 0 || !power_of_two(entries, "a release ring") ||
        !range_in_buffer(&self->maps.peer, offset, entries * SHM_RELEASE_ENTRY, "the release ring")) {
        Py_DECREF(self);
        return NULL;
    }
    self->ring.ring = (const uint8_t *)self->maps.peer.buf + offset;
    self->ring.entries = (uint64_t)entries;
    self->ring.tail_word = peer_word(&self->maps, SHM_CURSOR_RELEASE_TAIL);
    self->ring.head_word = own_word(&self->maps, SHM_CURSOR_RELEASE_HEAD);
    return (PyObject *)self;
}

static void reaper_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    mapping_pair_close(&((ReaperObject *)op)->maps);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *reaper_take(ReaperObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!mapping_pair_check(&self->maps))
        return NULL;
    PyObject *entries = PyList_New(0);
    if (!entries)
        return NULL;
    for (uint64_t i = 0; i < self->ring.entries && self->maps.open; i++) { /* a finalizer may close the channel */
        uint64_t block, generation;
        enum shm_status status = shm_reaper_take(&self->ring, &block, &generation);
        if (status == SHM_EMPTY)
            break;
        if (status != SHM_OK) {
            Py_DECREF(entries);
            return raise_corrupt(native_state_of(Py_TYPE(self)), status, shm_load_relaxed(self->ring.tail_word),
                                 self->ring.head + self->ring.entries);
        }
        PyObject *entry = Py_BuildValue("(KK)", (unsigned long long)block, (unsigned long long)generation);
        if (!entry || PyList_Append(entries, entry) < 0) {
            Py_XDECREF(entry);
            Py_DECREF(entries);
            return NULL;
        }
        Py_DECREF(entry);
    }
    return entries;
}

static PyObject *reaper_close(ReaperObject *self, PyObject *Py_UNUSED(ignored))
{
    mapping_pair_close(&self->maps);
    Py_RETURN_NONE;
}

static PyMethodDef reaper_methods[] = {
    {"take", (PyCFunction)(void (*)(void))reaper_take, METH_NOARGS,
     PyDoc_STR("take() -> [(block, generation), ...]: everything that came home since the last call.")},
    {"close", (PyCFunction)(void (*)(void))reaper_close, METH_NOARGS, PyDoc_STR("Let go of both mappings.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot reaper_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Reaper(own, peer, ring_offset, entries)\n\n"
                                  "The receiving end of the release ring in the peer's segment.")},
    {Py_tp_new, (void *)reaper_new},
    {Py_tp_dealloc, (void *)reaper_dealloc},
    {Py_tp_methods, reaper_methods},
    {0, NULL},
};

static PyType_Spec reaper_spec = {
    .name = "shmrpc._native.Reaper",
    .basicsize = sizeof(ReaperObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reaper_slots,
};

int add_release_types(PyObject *module, struct native_state *state)
{
    state->releaser = (PyTypeObject *)PyType_FromModuleAndSpec(module, &releaser_spec, NULL);
    if (!state->releaser || PyModule_AddType(module, state->releaser) < 0)
        return -1;
    state->reaper = (PyTypeObject *)PyType_FromModuleAndSpec(module, &reaper_spec, NULL);
    if (!state->reaper || PyModule_AddType(module, state->reaper) < 0)
        return -1;
    return 0;
}
