/* first_step.c: first_step, which starts a handler as the task that sits ready for it (shmrpc/shm/eager.py). */
#include "binding.h"

/* What a coroutine did in one step: *result is what it returned or yielded. */
static PySendResult step_in_context(PyObject *coroutine, PyObject *context, PyObject *variable, PyObject *value,
                                    PyObject **result)
{
    *result = NULL;
    if (PyContext_Enter(context) < 0)
        return PYGEN_ERROR;
    PySendResult outcome = PYGEN_ERROR;
    PyObject *token = PyContextVar_Set(variable, value);
    if (token) {
        Py_DECREF(token);
        outcome = PyIter_Send(coroutine, Py_None, result);
    }
    PyObject *type, *raised, *traceback;
    PyErr_Fetch(&type, &raised, &traceback);
    if (PyContext_Exit(context) < 0)
        PyErr_WriteUnraisable(context); /* entered above: this cannot fail */
    PyErr_Restore(type, raised, traceback);
    return outcome;
}

static PyObject *first_step(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 6) {
        PyErr_Format(PyExc_TypeError, "first_step takes 6 arguments, not %zd", count);
        return NULL;
    }
    struct native_state *state = PyModule_GetState(module);
    PyObject *entered = PyObject_Vectorcall(state->enter_task, args, 2, NULL);
    if (!entered) {
        if (!PyErr_ExceptionMatches(PyExc_RuntimeError))
            return NULL;
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    Py_DECREF(entered);
    PyObject *context = PyContext_Copy(args[3]);
    PyObject *result = NULL;
    PySendResult outcome = context ? step_in_context(args[2], context, args[4], args[5], &result) : PYGEN_ERROR;
    PyObject *type, *raised, *traceback;
    PyErr_Fetch(&type, &raised, &traceback);
    PyObject *left = PyObject_Vectorcall(state->leave_task, args, 2, NULL);
    if (!left)
        PyErr_WriteUnraisable(args[1]); /* entered above: this cannot fail */
    Py_XDECREF(left);
    PyErr_Restore(type, raised, traceback);
    PyObject *triple = outcome == PYGEN_ERROR ? NULL : PyTuple_New(3);
    if (!triple) {
        Py_XDECREF(result);
        Py_XDECREF(context);
        return NULL;
    }
    PyTuple_SET_ITEM(triple, 0, Py_NewRef(outcome == PYGEN_RETURN ? Py_True : Py_False));
    PyTuple_SET_ITEM(triple, 1, result);
    PyTuple_SET_ITEM(triple, 2, context);
    return triple;
}

static PyMethodDef call_functions[] = {
    {"first_step", (PyCFunction)(void (*)(void))first_step, METH_FASTCALL,
     PyDoc_STR("first_step(loop, task, coroutine, context, variable, value) -> (returned, object, context) | None\n\n"
               "As the task, and in a copy of the context with a variable set, run a coroutine to its first suspension. The\n"
               "object is its result, or what it yielded. None: another task is running, and nothing was done.")},
    {NULL, NULL, 0, NULL},
};

int add_first_step(PyObject *module, struct native_state *state)
{
    PyObject *tasks = PyImport_ImportModule("asyncio.tasks");
    if (!tasks)
        return -1;
    state->enter_task = PyObject_GetAttrString(tasks, "_enter_task");
    state->leave_task = PyObject_GetAttrString(tasks, "_leave_task");
    Py_DECREF(tasks);
    if (!state->enter_task || !state->leave_task)
        return -1;
    return PyModule_AddFunctions(module, call_functions);
}
