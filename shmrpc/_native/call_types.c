/* call_types.c: PendingCall, what a caller awaits. It exists because a call spends more time in it than in the ring when it
 * is Python (benchmarks/README.md says how that was measured); so does first_step, in its own file.
 */
#include "binding.h"

enum call_state { CALL_PENDING = 0, CALL_ANSWERED, CALL_CANCELLED };

/* A future that knows one waiter. asyncio.Task awaits it through the protocol that it has for futures of other makes:
 * _asyncio_future_blocking, get_loop, add_done_callback, cancel and result (asyncio/tasks.py, Task.__step).
 *
 * What it can do that asyncio.Future cannot: `pending_call_answer` runs the waiter at once, in the loop callback that took
 * the reply from the ring, instead of in the next turn of the loop.
 */
typedef struct {
    PyObject_HEAD
    PyObject *loop;
    PyObject *method;
    PyObject *answer;
    PyObject *callback; /* the waiting task's wake-up */
    PyObject *context;  /* that it runs in */
    PyObject *cancel_message;
    unsigned long long call_id;
    unsigned long long deadline_ns;
    char state;
    char blocking;
} PendingCallObject;

PyObject *pending_call_new(struct native_state *state, PyObject *loop, unsigned long long call_id, PyObject *method,
                           unsigned long long deadline_ns)
{
    PendingCallObject *self = PyObject_GC_New(PendingCallObject, state->pending_call);
    if (!self)
        return NULL;
    self->loop = Py_NewRef(loop);
    self->method = Py_NewRef(method);
    self->answer = self->callback = self->context = self->cancel_message = NULL;
    self->call_id = call_id;
    self->deadline_ns = deadline_ns;
    self->state = CALL_PENDING;
    self->blocking = 0;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int pending_call_traverse(PendingCallObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->loop);
    Py_VISIT(self->method);
    Py_VISIT(self->answer);
    Py_VISIT(self->callback);
    Py_VISIT(self->context);
    Py_VISIT(self->cancel_message);
    return 0;
}

static int pending_call_clear(PendingCallObject *self)
{
    Py_CLEAR(self->loop);
    Py_CLEAR(self->method);
    Py_CLEAR(self->answer);
    Py_CLEAR(self->callback);
    Py_CLEAR(self->context);
    Py_CLEAR(self->cancel_message);
    return 0;
}

static void pending_call_dealloc(PendingCallObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    pending_call_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* Runs the waiter now. For loop callbacks only: no task may be running. */
static int run_waiter(PendingCallObject *self)
{
    PyObject *callback = self->callback, *context = self->context;
    if (!callback)
        return 0; /* nobody waits yet: whoever comes finds the answer */
    self->callback = self->context = NULL;
    int failed = -1;
    if (!context || PyContext_Enter(context) == 0) {
        PyObject *result = PyObject_CallOneArg(callback, (PyObject *)self);
        failed = result ? 0 : -1;
        Py_XDECREF(result);
        if (context) {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            if (PyContext_Exit(context) < 0)
                failed = -1;
            else
                PyErr_Restore(type, value, traceback);
        }
    }
    Py_DECREF(callback);
    Py_XDECREF(context);
    return failed;
}

/* Runs the waiter in the next turn of the loop. */
static int schedule_waiter(PendingCallObject *self)
{
    PyObject *callback = self->callback, *context = self->context;
    if (!callback || !self->loop)
        return 0;
    self->callback = self->context = NULL;
    PyObject *call_soon = PyObject_GetAttrString(self->loop, "call_soon");
    PyObject *handle = NULL;
    if (call_soon) {
        PyObject *stack[3] = {callback, (PyObject *)self, context};
        PyObject *names = context ? Py_BuildValue("(s)", "context") : NULL;
        if (!context || names)
            handle = PyObject_Vectorcall(call_soon, stack, 2, names);
        Py_XDECREF(names);
        Py_DECREF(call_soon);
    }
    Py_DECREF(callback);
    Py_XDECREF(context);
    Py_XDECREF(handle);
    return handle ? 0 : -1;
}

int pending_call_answer(PyObject *op, PyObject *answer)
{
    PendingCallObject *self = (PendingCallObject *)op;
    if (self->state != CALL_PENDING)
        return 0; /* cancelled in this very tick */
    self->state = CALL_ANSWERED;
    self->answer = Py_NewRef(answer);
    return run_waiter(self);
}

static PyObject *pending_call_set_result(PendingCallObject *self, PyObject *answer)
{
    if (self->state == CALL_PENDING) {
        self->state = CALL_ANSWERED;
        self->answer = Py_NewRef(answer);
        if (schedule_waiter(self) < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *pending_call_answer_now(PendingCallObject *self, PyObject *answer)
{
    if (pending_call_answer((PyObject *)self, answer) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *pending_call_cancel(PendingCallObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (count + (names ? PyTuple_GET_SIZE(names) : 0) > 1) {
        PyErr_SetString(PyExc_TypeError, "cancel takes a message");
        return NULL;
    }
    if (self->state != CALL_PENDING)
        Py_RETURN_FALSE;
    self->state = CALL_CANCELLED;
    if (count || names)
        self->cancel_message = args[0] == Py_None ? NULL : Py_NewRef(args[0]);
    if (schedule_waiter(self) < 0)
        return NULL;
    Py_RETURN_TRUE;
}

static PyObject *pending_call_result(PendingCallObject *self, PyObject *Py_UNUSED(ignored))
{
    if (self->state == CALL_ANSWERED)
        return Py_NewRef(self->answer);
    if (self->state == CALL_PENDING) {
        PyErr_SetString(PyExc_RuntimeError, "the call has not ended");
        return NULL;
    }
    PyObject *type = native_state_of(Py_TYPE(self))->cancelled_error;
    PyObject *error = self->cancel_message ? PyObject_CallOneArg(type, self->cancel_message) : PyObject_CallNoArgs(type);
    if (error) {
        PyErr_SetObject(type, error);
        Py_DECREF(error);
    }
    return NULL;
}

static PyObject *pending_call_done(PendingCallObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->state != CALL_PENDING);
}

static PyObject *pending_call_cancelled(PendingCallObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->state == CALL_CANCELLED);
}

static PyObject *pending_call_get_loop(PendingCallObject *self, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(self->loop ? self->loop : Py_None);
}

static PyObject *pending_call_add_done_callback(PendingCallObject *self, PyObject *const *args, Py_ssize_t count,
                                                PyObject *names)
{
    Py_ssize_t keywords = names ? PyTuple_GET_SIZE(names) : 0;
    if (count != 1 || keywords > 1) {
        PyErr_SetString(PyExc_TypeError, "add_done_callback takes a callback and a context");
        return NULL;
    }
    if (self->callback) {
        PyErr_SetString(PyExc_RuntimeError, "a call can be awaited by one task only");
        return NULL;
    }
    self->callback = Py_NewRef(args[0]);
    self->context = keywords && args[1] != Py_None ? Py_NewRef(args[1]) : NULL;
    if (self->state != CALL_PENDING && schedule_waiter(self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *pending_call_remove_done_callback(PendingCallObject *self, PyObject *callback)
{
    int same = self->callback ? PyObject_RichCompareBool(self->callback, callback, Py_EQ) : 0;
    if (same < 0)
        return NULL;
    if (same) {
        Py_CLEAR(self->callback);
        Py_CLEAR(self->context);
    }
    return PyLong_FromLong(same);
}

static PyObject *pending_call_get_blocking(PendingCallObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->blocking);
}

static int pending_call_set_blocking(PendingCallObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int blocking = value ? PyObject_IsTrue(value) : 0;
    if (blocking < 0)
        return -1;
    self->blocking = (char)blocking;
    return 0;
}

static PySendResult pending_call_send(PendingCallObject *self, PyObject *Py_UNUSED(value), PyObject **result)
{
    if (self->state == CALL_PENDING) {
        if (self->callback) { /* said here, since asyncio leaves a task for ever that add_done_callback refuses */
            PyErr_SetString(PyExc_RuntimeError, "a call can be awaited by one task only");
            *result = NULL;
            return PYGEN_ERROR;
        }
        self->blocking = 1;
        *result = Py_NewRef(self);
        return PYGEN_NEXT;
    }
    *result = pending_call_result(self, NULL);
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

static PyObject *pending_call_next(PendingCallObject *self)
{
    PyObject *result;
    switch (pending_call_send(self, Py_None, &result)) {
    case PYGEN_NEXT:
        return result;
    case PYGEN_RETURN: {
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
        if (stop)
            PyErr_SetObject(PyExc_StopIteration, stop);
        Py_XDECREF(stop);
        Py_DECREF(result);
        return NULL;
    }
    default:
        return NULL;
    }
}

static PyMethodDef pending_call_methods[] = {
    {"set_result", (PyCFunction)(void (*)(void))pending_call_set_result, METH_O,
     PyDoc_STR("End the call with an answer; its waiter runs in the next turn of the loop. Nothing when it has ended.")},
    {"answer", (PyCFunction)(void (*)(void))pending_call_answer_now, METH_O,
     PyDoc_STR("End the call with an answer and run its waiter at once: in a callback of the loop only, where no task runs.\n"
               "Raises what the waiter raises past Exception. Nothing when it has ended.")},
    {"result", (PyCFunction)(void (*)(void))pending_call_result, METH_NOARGS, PyDoc_STR("The answer.")},
    {"done", (PyCFunction)(void (*)(void))pending_call_done, METH_NOARGS, PyDoc_STR("Whether it was answered or cancelled.")},
    {"cancelled", (PyCFunction)(void (*)(void))pending_call_cancelled, METH_NOARGS, PyDoc_STR("Whether it was cancelled.")},
    {"cancel", (PyCFunction)(void (*)(void))pending_call_cancel, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("Called by the waiting task when it is cancelled.")},
    {"get_loop", (PyCFunction)(void (*)(void))pending_call_get_loop, METH_NOARGS, PyDoc_STR("The event loop.")},
    {"add_done_callback", (PyCFunction)(void (*)(void))pending_call_add_done_callback, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("Called by the waiting task.")},
    {"remove_done_callback", (PyCFunction)(void (*)(void))pending_call_remove_done_callback, METH_O,
     PyDoc_STR("Forget the waiting task.")},
    {NULL, NULL, 0, NULL},
};

#define OFFSET(member) offsetof(PendingCallObject, member)

static PyMemberDef pending_call_members[] = {
    {"call_id", T_ULONGLONG, OFFSET(call_id), READONLY, PyDoc_STR("The call's number on its session.")},
    {"deadline_ns", T_ULONGLONG, OFFSET(deadline_ns), READONLY, PyDoc_STR("Absolute; 0: none.")},
    {"method", T_OBJECT, OFFSET(method), READONLY, PyDoc_STR("What is called.")},
    {NULL, 0, 0, 0, NULL},
};

/* isinstance() says that it is one of asyncio's futures, as which it behaves where a task awaits it. anyio asks so whether
 * what a task waits for has ended; if that were no future, it would cancel the task once more than it takes back.
 */
static PyObject *pending_call_get_class(PendingCallObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(native_state_of(Py_TYPE(self))->future);
}

static PyGetSetDef pending_call_getset[] = {
    {"__class__", (getter)(void (*)(void))pending_call_get_class, NULL, PyDoc_STR("asyncio.Future, for isinstance()."), NULL},
    {"_asyncio_future_blocking", (getter)(void (*)(void))pending_call_get_blocking,
     (setter)(void (*)(void))pending_call_set_blocking, PyDoc_STR("asyncio's mark of a future that is being awaited."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pending_call_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("One call on its way, to be awaited once. Made by a Requester.")},
    {Py_tp_dealloc, (void *)pending_call_dealloc},
    {Py_tp_traverse, (void *)pending_call_traverse},
    {Py_tp_clear, (void *)pending_call_clear},
    {Py_tp_methods, pending_call_methods},
    {Py_tp_members, pending_call_members},
    {Py_tp_getset, pending_call_getset},
    {Py_tp_iter, (void *)PyObject_SelfIter},
    {Py_tp_iternext, (void *)pending_call_next},
    {Py_am_await, (void *)PyObject_SelfIter},
    {Py_am_send, (void *)pending_call_send},
    {0, NULL},
};

static PyType_Spec pending_call_spec = {
    .name = "shmrpc._native.PendingCall",
    .basicsize = sizeof(PendingCallObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = pending_call_slots,
};

int add_call_types(PyObject *module, struct native_state *state)
{
    PyObject *asyncio = PyImport_ImportModule("asyncio");
    if (!asyncio)
        return -1;
    state->cancelled_error = PyObject_GetAttrString(asyncio, "CancelledError");
    state->future = PyObject_GetAttrString(asyncio, "Future");
    Py_DECREF(asyncio);
    if (!state->cancelled_error || !state->future)
        return -1;
    state->pending_call = (PyTypeObject *)PyType_FromModuleAndSpec(module, &pending_call_spec, NULL);
    return state->pending_call ? PyModule_AddType(module, state->pending_call) : -1;
}
