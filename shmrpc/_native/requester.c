/* requester.c: Requester, which begins calls: numbers them, keeps them as pending and publishes their requests. */
#include "binding.h"

typedef struct {
    PyObject_HEAD
    PyObject *loop;
    PyObject *loop_runs; /* its bound is_running */
    PyObject *producer;
    PyObject *pending;   /* {call id: PendingCall} */
    PyObject *settle;    /* what to call when the record was not simply published */
    unsigned long long next_id;
    unsigned long thread;
} RequesterObject;

static PyObject *requester_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", "producer", "pending", "settle", NULL};
    PyObject *loop, *producer, *pending, *settle;
    struct native_state *state = native_state_of(type);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!O!O", names, &loop, state->producer, &producer, &PyDict_Type,
                                     &pending, &settle))
        return NULL;
    RequesterObject *self = (RequesterObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->loop = Py_NewRef(loop);
    self->producer = Py_NewRef(producer);
    self->pending = Py_NewRef(pending);
    self->settle = Py_NewRef(settle);
    self->next_id = 1;
    self->thread = PyThread_get_thread_ident();
    self->loop_runs = PyObject_GetAttrString(loop, "is_running");
    if (!self->loop_runs)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int requester_traverse(RequesterObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->loop);
    Py_VISIT(self->loop_runs);
    Py_VISIT(self->producer);
    Py_VISIT(self->pending);
    Py_VISIT(self->settle);
    return 0;
}

static int requester_clear(RequesterObject *self)
{
    Py_CLEAR(self->loop);
    Py_CLEAR(self->loop_runs);
    Py_CLEAR(self->producer);
    Py_CLEAR(self->pending);
    Py_CLEAR(self->settle);
    return 0;
}

static void requester_dealloc(RequesterObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    requester_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Whether the running event loop is this one: it runs, and in this thread. asyncio.get_running_loop costs a system call
 * on Python 3.11. -1: error.
 */
static int in_own_loop(RequesterObject *self)
{
    if (PyThread_get_thread_ident() != self->thread)
        return 0;
    PyObject *runs = PyObject_CallNoArgs(self->loop_runs);
    int answer = runs ? PyObject_IsTrue(runs) : -1;
    Py_XDECREF(runs);
    return answer;
}

static int settle(RequesterObject *self, int status, const struct shm_record *record, PyObject *payload)
{
    PyObject *result = PyObject_CallFunction(self->settle, "i(iiiKKO)", status, record->kind, record->flags, record->method,
                                             (unsigned long long)record->call_id, (unsigned long long)record->deadline_ns,
                                             payload);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* A request's record, of the method's number, the flags and the deadline. False: they do not fit. */
static bool fill_in(struct shm_record *record, PyObject *number, long flags, PyObject *deadline_ns)
{
    long method = PyLong_AsLong(number);
    *record = (struct shm_record){
        .kind = SHM_KIND_REQUEST,
        .flags = (uint8_t)flags,
        .method = (uint16_t)method,
        .deadline_ns = PyLong_AsUnsignedLongLong(deadline_ns),
    };
    if (PyErr_Occurred())
        return false;
    if (record->flags != flags || record->method != method)
        PyErr_Format(PyExc_OverflowError, "flags %ld or method %ld does not fit in a record", flags, method);
    return !PyErr_Occurred();
}

/* Numbers a call, keeps it as pending and publishes its request. With `or_not`, one that finds no room is not begun: NULL,
 * without an exception; else it is settled.
 */
static PyObject *begin(RequesterObject *self, PyObject *method, struct shm_record *record, PyObject *payload, bool or_not)
{
    record->call_id = self->next_id;
    PyObject *call_id = PyLong_FromUnsignedLongLong(self->next_id);
    PyObject *call = call_id ? pending_call_new(native_state_of(Py_TYPE(self)), self->loop, self->next_id, method,
                                                record->deadline_ns)
                             : NULL;
    if (!call || PyDict_SetItem(self->pending, call_id, call) < 0) {
        Py_XDECREF(call_id);
        Py_XDECREF(call);
        return NULL;
    }
    self->next_id++;
    SHM_STEP(call_pending);
    int status = producer_publish(self->producer, record, payload);
    SHM_STEP(call_published);
    bool begun = status >= 0 && !(or_not && status > SEND_RING);
    if (!begun || (status > 0 && settle(self, status, record, payload) < 0)) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        if (PyDict_DelItem(self->pending, call_id) < 0) /* ended by what settle did */
            PyErr_Clear();
        PyErr_Restore(type, value, traceback);
        Py_CLEAR(call);
    }
    Py_DECREF(call_id);
    return call;
}

static PyObject *requester_start(RequesterObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 5) {
        PyErr_Format(PyExc_TypeError, "start takes 5 arguments, not %zd", count);
        return NULL;
    }
    int own = in_own_loop(self);
    if (own <= 0)
        return own < 0 ? NULL : Py_NewRef(Py_None);
    struct shm_record record;
    if (!fill_in(&record, args[1], PyLong_AsLong(args[2]), args[3]))
        return NULL;
    return begin(self, args[0], &record, args[4], false);
}

static PyObject *requester_lend(RequesterObject *self, PyObject *const *args, Py_ssize_t count)
{
    struct native_state *state = native_state_of(Py_TYPE(self));
    if (count != 7 || !Py_IS_TYPE(args[0], state->ledger) || !PyBytes_CheckExact(args[4])) {
        PyErr_SetString(PyExc_TypeError, "lend takes a Ledger, method, number, deadline_ns, bytes, an exporter and a name");
        return NULL;
    }
    int own = in_own_loop(self);
    if (own <= 0)
        return own < 0 ? NULL : Py_NewRef(Py_None);
    struct shm_record record;
    if (!fill_in(&record, args[2], SHM_FLAG_HAS_BUFFERS, args[3]))
        return NULL;
    PyObject *lease, *payload = ledger_refer_quickly(args[0], args[5], args[6], args[4], &lease);
    if (!payload)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    SHM_STEP(call_lent);
    PyObject *call = begin(self, args[1], &record, payload, true);
    if (!call)
        ledger_undo(args[0], lease);
    Py_DECREF(payload);
    Py_DECREF(lease);
    return call || PyErr_Occurred() ? call : Py_NewRef(Py_None);
}

static PyMethodDef requester_methods[] = {
    {"start", (PyCFunction)(void (*)(void))requester_start, METH_FASTCALL,
     PyDoc_STR("start(method, number, flags, deadline_ns, payload) -> PendingCall | None\n\n"
               "Begin a call. None: the running event loop is another one, or in another thread.")},
    {"lend", (PyCFunction)(void (*)(void))requester_lend, METH_FASTCALL,
     PyDoc_STR("lend(ledger, method, number, deadline_ns, body, exporter, name) -> PendingCall | None\n\n"
               "Begin a call that lends what one exporter shows, and is published now. None: it is not that simple; nothing\n"
               "was begun, and nothing is lent.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot requester_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Requester(loop, producer, pending, settle)\n\n"
                                  "Begins the calls of one session. settle(status, record) finishes what the producer could\n"
                                  "not do by itself.")},
    {Py_tp_new, (void *)requester_new},
    {Py_tp_dealloc, (void *)requester_dealloc},
    {Py_tp_traverse, (void *)requester_traverse},
    {Py_tp_clear, (void *)requester_clear},
    {Py_tp_methods, requester_methods},
    {0, NULL},
};

static PyType_Spec requester_spec = {
    .name = "shmrpc._native.Requester",
    .basicsize = sizeof(RequesterObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = requester_slots,
};

int add_requester_type(PyObject *module)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &requester_spec, NULL);
    int failed = type ? PyModule_AddType(module, type) : -1;
    Py_XDECREF(type);
    return failed;
}
