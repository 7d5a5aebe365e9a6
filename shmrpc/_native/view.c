/* view.c: View, which exports part of a mapping and reports its own death, and address_of. */
#include "binding.h"

/* What a View reports its death to. A flag of its own, since the module's state may be gone when the last ones die. */
enum view_end { END_NOTHING = 0, END_RELEASER, END_CALL };

/* Not tracked by the garbage collector, on purpose. The collector would clear the reference to `end` of a View in a
 * garbage cycle before the View dies, and the release would be lost; an object that it does not track dies by its count
 * alone, once, whoever lets go of it last. That cannot hide a cycle, as long as neither end leads back to the View: a
 * mapping refers to nothing, a Releaser only to its mappings and to what rings.
 */
typedef struct {
    PyObject_HEAD
    Py_buffer mapping;
    uint8_t *start;
    Py_ssize_t nbytes;
    PyObject *end;
    PyObject *weak_references;
    uint64_t block;
    uint64_t generation;
    uint8_t end_kind;
    uint8_t writable;
} ViewObject;

PyObject *view_open(struct native_state *state, PyObject *mapping, Py_ssize_t offset, Py_ssize_t nbytes, uint64_t block,
                    uint64_t generation, bool writable)
{
    ViewObject *self = PyObject_New(ViewObject, state->view);
    if (!self)
        return NULL;
    self->end = self->weak_references = NULL;
    self->end_kind = END_NOTHING;
    self->writable = writable;
    self->block = block;
    self->generation = generation;
    self->mapping.obj = NULL; /* nothing to release yet */
    if (PyObject_GetBuffer(mapping, &self->mapping, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
        self->mapping.obj = NULL;
        Py_DECREF(self);
        return NULL;
    }
    if (offset < 0 || nbytes < 0 || nbytes > self->mapping.len - offset) {
        PyErr_Format(PyExc_ValueError, "%zd bytes at %zd do not lie in a mapping of %zd bytes", nbytes, offset,
                     self->mapping.len);
        Py_DECREF(self);
        return NULL;
    }
    self->start = (uint8_t *)self->mapping.buf + offset;
    self->nbytes = nbytes;
    return (PyObject *)self;
}

void view_release_to(PyObject *op, PyObject *releaser)
{
    ViewObject *self = (ViewObject *)op;
    self->end = Py_NewRef(releaser);
    self->end_kind = END_RELEASER;
}

static void call_end(PyObject *end, uint64_t block, uint64_t generation)
{
    PyObject *type, *value, *traceback; /* of whatever lets go of the View just now */
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *result = PyObject_CallFunction(end, "KK", (unsigned long long)block, (unsigned long long)generation);
    if (!result)
        PyErr_WriteUnraisable(end);
    Py_XDECREF(result);
    PyErr_Restore(type, value, traceback);
}

static void view_dealloc(PyObject *op)
{
    ViewObject *self = (ViewObject *)op;
    PyTypeObject *type = Py_TYPE(op);
    if (self->weak_references)
        PyObject_ClearWeakRefs(op);
    PyBuffer_Release(&self->mapping); /* first: whoever hears of the end may unmap it */
    if (self->end_kind == END_RELEASER)
        releaser_send_home(self->end, self->block, self->generation);
    else if (self->end_kind == END_CALL && !interpreter_is_finalizing())
        call_end(self->end, self->block, self->generation);
    Py_XDECREF(self->end);
    PyObject_Free(self);
    Py_DECREF(type);
}

enum { VIEW_LEAST = 6, VIEW_MOST = 7 };

/* Whether arguments are those of View(); `writable` may be given by name. */
static bool view_arguments_fit(Py_ssize_t count, PyObject *names)
{
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    if (named == 1 && count == VIEW_LEAST && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "writable") == 0)
        return true;
    if (named == 0 && (count == VIEW_LEAST || count == VIEW_MOST))
        return true;
    PyErr_SetString(PyExc_TypeError, "View takes mapping, offset, nbytes, end, block, generation and perhaps writable");
    return false;
}

static PyObject *view_vectorcall(PyObject *type, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Py_ssize_t count = PyVectorcall_NARGS(nargsf);
    if (!view_arguments_fit(count, names))
        return NULL;
    Py_ssize_t offset = PyLong_AsSsize_t(args[1]), nbytes = PyLong_AsSsize_t(args[2]);
    uint64_t block = PyLong_AsUnsignedLongLong(args[4]), generation = PyLong_AsUnsignedLongLong(args[5]);
    int writable = names || count == VIEW_MOST ? PyObject_IsTrue(args[VIEW_LEAST]) : 0;
    if (PyErr_Occurred())
        return NULL;
    struct native_state *state = native_state_of((PyTypeObject *)type);
    PyObject *end = args[3];
    bool releases = Py_IS_TYPE(end, state->releaser);
    if (end != Py_None && !releases && !PyCallable_Check(end)) {
        PyErr_SetString(PyExc_TypeError, "a View reports its end to a Releaser, a callable or None");
        return NULL;
    }
    PyObject *view = view_open(state, args[0], offset, nbytes, block, generation, writable != 0);
    if (view && releases) {
        view_release_to(view, end);
    } else if (view && end != Py_None) {
        ((ViewObject *)view)->end = Py_NewRef(end);
        ((ViewObject *)view)->end_kind = END_CALL;
    }
    return view;
}

static PyObject *view_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    return PyObject_VectorcallDict((PyObject *)type, ((PyTupleObject *)args)->ob_item, (size_t)PyTuple_GET_SIZE(args),
                                   kwargs);
}

static int view_get_buffer(ViewObject *self, Py_buffer *buffer, int flags)
{
    return PyBuffer_FillInfo(buffer, (PyObject *)self, self->start, self->nbytes, !self->writable, flags);
}

static Py_ssize_t view_length(ViewObject *self)
{
    return self->nbytes;
}

static PyObject *view_repr(ViewObject *self)
{
    return PyUnicode_FromFormat("<View of %zd bytes, block %llu, generation %llu%s>", self->nbytes,
                                (unsigned long long)self->block, (unsigned long long)self->generation,
                                self->writable ? ", writable" : "");
}

static PyMemberDef view_members[] = {
    {"nbytes", T_PYSSIZET, offsetof(ViewObject, nbytes), READONLY, PyDoc_STR("How many bytes it shows.")},
    {"block", T_ULONGLONG, offsetof(ViewObject, block), READONLY, PyDoc_STR("The number of the block that they are in.")},
    {"generation", T_ULONGLONG, offsetof(ViewObject, generation), READONLY, PyDoc_STR("The number of the lease.")},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(ViewObject, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot view_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR(
                    "View(mapping, offset, nbytes, end, block, generation, writable=False)\n\n"
                    "Part of a mapping, as a one-dimensional buffer of bytes. When it dies, on whatever thread, its block\n"
                    "goes home once: through `end` if that is a Releaser, else by end(block, generation); None: nothing\n"
                    "happens. The mapping stays as long as the View. `end` must not refer to the View.")},
    {Py_tp_new, (void *)view_new},
    {Py_tp_dealloc, (void *)view_dealloc},
    {Py_tp_repr, (void *)view_repr},
    {Py_tp_members, view_members},
    {Py_sq_length, (void *)view_length},
    {Py_bf_getbuffer, (void *)view_get_buffer},
    {0, NULL},
};

static PyType_Spec view_spec = {
    .name = "shmrpc._native.View",
    .basicsize = sizeof(ViewObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = view_slots,
};

/* ---- address_of ------------------------------------------------------------------------------------------------- */

PyObject *address_of(PyObject *Py_UNUSED(module), PyObject *object)
{
    Py_buffer buffer;
    if (!PyObject_CheckBuffer(object))
        Py_RETURN_NONE;
    /* No format is asked for: numpy has none for some types, and takes long to write that of a structure. */
    if (PyObject_GetBuffer(object, &buffer, PyBUF_STRIDES) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError) &&
            !PyErr_ExceptionMatches(PyExc_TypeError))
            return NULL;
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    PyObject *address = PyLong_FromVoidPtr(buffer.buf), *nbytes = PyLong_FromSsize_t(buffer.len);
    bool contiguous = PyBuffer_IsContiguous(&buffer, 'A'), readonly = buffer.readonly;
    PyBuffer_Release(&buffer);
    PyObject *answer = address && nbytes ? PyTuple_New(4) : NULL;
    if (!answer) {
        Py_XDECREF(address);
        Py_XDECREF(nbytes);
        return NULL;
    }
    PyTuple_SET_ITEM(answer, 0, address);
    PyTuple_SET_ITEM(answer, 1, nbytes);
    PyTuple_SET_ITEM(answer, 2, Py_NewRef(contiguous ? Py_True : Py_False));
    PyTuple_SET_ITEM(answer, 3, Py_NewRef(readonly ? Py_True : Py_False));
    return answer;
}

int add_view_type(PyObject *module, struct native_state *state)
{
    state->view = (PyTypeObject *)PyType_FromModuleAndSpec(module, &view_spec, NULL);
    if (!state->view)
        return -1;
    state->view->tp_vectorcall = view_vectorcall;
    return PyModule_AddType(module, state->view);
}
