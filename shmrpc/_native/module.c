/* module.c: the module shmrpc._native: its state, constants and shared checks. The types live in files of
 * their own; the algorithms in ring.h and wake.h, which know nothing of Python.
 */
#include "binding.h"

int mapping_pair_open(struct mapping_pair *pair, PyObject *own, PyObject *peer)
{
    pair->open = false;
    if (PyObject_GetBuffer(own, &pair->own, PyBUF_WRITABLE) < 0)
        return -1;
    if (PyObject_GetBuffer(peer, &pair->peer, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&pair->own);
        return -1;
    }
    pair->open = true;
    if (pair->own.len < SHM_CURSOR_END || pair->peer.len < SHM_CURSOR_END) {
        PyErr_Format(PyExc_ValueError, "a segment is shorter than its cursor page: %zd and %zd bytes, at least %d",
                     pair->own.len, pair->peer.len, SHM_CURSOR_END);
        return -1;
    }
    if (((uintptr_t)pair->own.buf | (uintptr_t)pair->peer.buf) % sizeof(shm_word)) {
        PyErr_SetString(PyExc_ValueError, "a segment must be aligned to eight bytes");
        return -1;
    }
    return 0;
}

void mapping_pair_close(struct mapping_pair *pair)
{
    if (pair->open) {
        pair->open = false;
        PyBuffer_Release(&pair->own);
        PyBuffer_Release(&pair->peer);
    }
}

bool mapping_pair_check(const struct mapping_pair *pair)
{
    if (!pair->open)
        PyErr_SetString(PyExc_ValueError, "the channel is closed");
    return pair->open;
}

bool range_in_buffer(const Py_buffer *buffer, Py_ssize_t offset, Py_ssize_t bytes, const char *what)
{
    if (offset < SHM_CURSOR_END || offset % 8 || bytes < 0 || offset > buffer->len || bytes > buffer->len - offset) {
        PyErr_Format(PyExc_ValueError, "%s at %zd of %zd bytes does not fit in a segment of %zd bytes", what, offset,
                     bytes, buffer->len);
        return false;
    }
    return true;
}

bool power_of_two(Py_ssize_t value, const char *what)
{
    if (value < 8 || (value & (value - 1))) {
        PyErr_Format(PyExc_ValueError, "%s must be a power of two and at least 8, not %zd", what, value);
        return false;
    }
    return true;
}

struct native_state *native_state_of(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}

PyObject *raise_corrupt(struct native_state *state, enum shm_status status, uint64_t got, uint64_t allowed)
{
    const char *what = status == SHM_BAD_HEAD   ? "the peer's read position is outside of what was published"
                       : status == SHM_BAD_TAIL ? "the peer's write position went back, is unaligned or ran over"
                                                : "a record of the peer does not fit in its ring";
    PyErr_Format(state->corrupt, "%s (got %llu, allowed %llu)", what, (unsigned long long)got,
                 (unsigned long long)allowed);
    return NULL;
}

static PyMethodDef module_methods[] = {
    {"watch", (PyCFunction)(void (*)(void))watch, METH_FASTCALL,
     PyDoc_STR("watch(consumers, spin_ns) -> bool\n\nWhether any consumer has something to take; looks for spin_ns at most.")},
    {"address_of", (PyCFunction)(void (*)(void))address_of, METH_O,
     PyDoc_STR("address_of(object) -> (address, nbytes, contiguous, readonly) | None\n\n"
               "Where the memory of an object with the buffer protocol lies now, in whatever order of its axes. None: it has\n"
               "no such memory.")},
    {"open_references", (PyCFunction)(void (*)(void))open_references, METH_FASTCALL,
     PyDoc_STR("open_references(payload, extents, releaser, most) -> (body, opened)\n\n"
               "Open the table of at most `most` references that a payload begins with. Each becomes a View that goes home\n"
               "through the releaser; one to a block of this side becomes (block, generation, offset, nbytes). `extents` is\n"
               "{number: (mapping, slab_offset, slab_bytes)}. RingCorrupt: the peer lies. KeyError: an extent that is not in\n"
               "the dict; nothing was opened.")},
    {"pack_references", (PyCFunction)(void (*)(void))pack_references, METH_FASTCALL,
     PyDoc_STR("pack_references(references, body) -> bytes\n\n"
               "A payload: the table of (block, generation, offset, nbytes), then the body.")},
    {NULL, NULL, 0, NULL},
};

static int add_constants(PyObject *module)
{
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"CURSOR_TAIL", SHM_CURSOR_TAIL},
        {"CURSOR_HEAD", SHM_CURSOR_HEAD},
        {"CURSOR_RELEASE_TAIL", SHM_CURSOR_RELEASE_TAIL},
        {"CURSOR_RELEASE_HEAD", SHM_CURSOR_RELEASE_HEAD},
        {"CURSOR_DOORBELL_EPOCH", SHM_CURSOR_DOORBELL_EPOCH},
        {"CURSOR_ROOM_EPOCH", SHM_CURSOR_ROOM_EPOCH},
        {"CURSOR_END", SHM_CURSOR_END},
        {"RECORD_HEADER", SHM_RECORD_HEADER},
        {"RECORD_ALIGN", SHM_RECORD_ALIGN},
        {"KIND_PAD", SHM_KIND_PAD},
        {"KIND_REQUEST", SHM_KIND_REQUEST},
        {"KIND_REPLY", SHM_KIND_REPLY},
        {"FLAG_IN_BLOCK", SHM_FLAG_IN_BLOCK},
        {"RELEASE_ENTRY", SHM_RELEASE_ENTRY},
        {"GRANULE", SHM_GRANULE},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    return 0;
}

static int module_exec(PyObject *module)
{
    struct native_state *state = PyModule_GetState(module);
    state->corrupt = PyErr_NewExceptionWithDoc("shmrpc._native.RingCorrupt",
                                               "The peer wrote what the layout does not allow.", PyExc_ValueError, NULL);
    if (!state->corrupt || PyModule_AddObjectRef(module, "RingCorrupt", state->corrupt) < 0)
        return -1;
    if (add_constants(module) < 0 || add_producer_type(module, state) < 0 ||
        add_consumer_type(module, state) < 0 || add_release_types(module, state) < 0 ||
        add_view_type(module, state) < 0 || add_ledger_types(module, state) < 0 || add_call_types(module, state) < 0 ||
        add_first_step(module, state) < 0 || add_requester_type(module) < 0)
        return -1;
#ifdef SHMRPC_STEPS
    return add_steps(module);
#else
    return 0;
#endif
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct native_state *state = PyModule_GetState(module);
    Py_VISIT(state->corrupt);
    Py_VISIT(state->producer);
    Py_VISIT(state->consumer);
    Py_VISIT(state->releaser);
    Py_VISIT(state->reaper);
    Py_VISIT(state->view);
    Py_VISIT(state->block);
    Py_VISIT(state->ledger);
    Py_VISIT(state->pending_call);
    Py_VISIT(state->cancelled_error);
    Py_VISIT(state->future);
    Py_VISIT(state->enter_task);
    Py_VISIT(state->leave_task);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct native_state *state = PyModule_GetState(module);
    Py_CLEAR(state->corrupt);
    Py_CLEAR(state->producer);
    Py_CLEAR(state->consumer);
    Py_CLEAR(state->releaser);
    Py_CLEAR(state->reaper);
    Py_CLEAR(state->view);
    Py_CLEAR(state->block);
    Py_CLEAR(state->ledger);
    Py_CLEAR(state->pending_call);
    Py_CLEAR(state->cancelled_error);
    Py_CLEAR(state->future);
    Py_CLEAR(state->enter_task);
    Py_CLEAR(state->leave_task);
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shmrpc._native",
    .m_doc = PyDoc_STR("The ordering points of shmrpc: rings and cursors in shared memory."),
    .m_size = sizeof(struct native_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
