/* ledger.c: Ledger, which keeps the leases that are out on this side's memory, and Block, what it must know of a block.
 *
 * Only the two quick ways are here: to lend a whole array that was born in a block, and to end the leases that came home.
 * Both work on the Python objects that `arena` keeps, so that everything else can be done there.
 */
#include "binding.h"
#include "references.h"

#include <time.h>

typedef struct {
    PyObject_HEAD
    unsigned long long number;
    unsigned long long address;
    Py_ssize_t nbytes;
    Py_ssize_t handles;
    Py_ssize_t leases;
} BlockObject;

typedef struct {
    PyObject_HEAD
    PyObject *loans;  /* {lease: loan} */
    PyObject *blocks; /* {address: Block} */
    PyTypeObject *loan;
    PyObject *region_name; /* interned "region" and "attached" */
    PyObject *attached_name;
    unsigned long long next;
    Py_ssize_t mark;
    Py_ssize_t longest_body;
    Py_ssize_t largest_message;
} LedgerObject;

/* ---- Block ------------------------------------------------------------------------------------------------------ */

static PyObject *block_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    return type->tp_alloc(type, 0); /* a subclass fills it in */
}

static void block_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef block_members[] = {
    {"number", T_ULONGLONG, offsetof(BlockObject, number), 0, PyDoc_STR("What it is called on the wire.")},
    {"address", T_ULONGLONG, offsetof(BlockObject, address), 0, PyDoc_STR("Where it lies in this process.")},
    {"nbytes", T_PYSSIZET, offsetof(BlockObject, nbytes), 0, PyDoc_STR("How many bytes it has.")},
    {"handles", T_PYSSIZET, offsetof(BlockObject, handles), 0, PyDoc_STR("How many objects of this process keep it.")},
    {"leases", T_PYSSIZET, offsetof(BlockObject, leases), 0, PyDoc_STR("How many leases of it are out.")},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot block_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Block(...)\n\nThe numbers of a block, all zero at first; to be subclassed.")},
    {Py_tp_new, (void *)block_new},
    {Py_tp_dealloc, (void *)block_dealloc},
    {Py_tp_members, block_members},
    {0, NULL},
};

static PyType_Spec block_spec = {
    .name = "shmrpc._native.Block",
    .basicsize = sizeof(BlockObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = block_slots,
};

enum { LOAN_FIELDS = 5 }; /* block, offset, nbytes, method, since_ns */

/* ---- Ledger ----------------------------------------------------------------------------------------------------- */

static PyObject *ledger_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loan", NULL};
    PyTypeObject *loan;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!", names, &PyType_Type, &loan))
        return NULL;
    if (!PyType_IsSubtype(loan, &PyTuple_Type) || loan->tp_basicsize != PyTuple_Type.tp_basicsize) {
        PyErr_SetString(PyExc_TypeError, "a loan is a NamedTuple");
        return NULL;
    }
    LedgerObject *self = (LedgerObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->loan = (PyTypeObject *)Py_NewRef(loan);
    self->next = 1;
    self->loans = PyDict_New();
    self->blocks = PyDict_New();
    self->region_name = PyUnicode_InternFromString("region");
    self->attached_name = PyUnicode_InternFromString("attached");
    if (!self->loans || !self->blocks || !self->region_name || !self->attached_name)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int ledger_traverse(LedgerObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->loans);
    Py_VISIT(self->blocks);
    Py_VISIT(self->loan);
    return 0;
}

static int ledger_clear(LedgerObject *self)
{
    Py_CLEAR(self->loans);
    Py_CLEAR(self->blocks);
    Py_CLEAR(self->loan);
    return 0;
}

static void ledger_dealloc(LedgerObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    ledger_clear(self);
    Py_CLEAR(self->region_name);
    Py_CLEAR(self->attached_name);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail; what time.monotonic_ns reads */
    return PyLong_FromLongLong((long long)now.tv_sec * 1000000000 + now.tv_nsec);
}

/* Puts down a new lease and gives its number as an object; NULL: error, and nothing was lent. The number is taken before,
 * since an allocation can run a finalizer, and that anything.
 */
static PyObject *lend(LedgerObject *self, unsigned long long number, BlockObject *block, Py_ssize_t offset, Py_ssize_t nbytes,
                      PyObject *method)
{
    SHM_STEP(lend_numbered);
    PyObject *loan = self->loan->tp_alloc(self->loan, LOAN_FIELDS), *lease = PyLong_FromUnsignedLongLong(number);
    if (loan) {
        PyTuple_SET_ITEM(loan, 0, Py_NewRef(block));
        PyTuple_SET_ITEM(loan, 1, PyLong_FromSsize_t(offset));
        PyTuple_SET_ITEM(loan, 2, PyLong_FromSsize_t(nbytes));
        PyTuple_SET_ITEM(loan, 3, Py_NewRef(method));
        PyTuple_SET_ITEM(loan, 4, monotonic_ns());
    }
    if (!lease || !loan || !PyTuple_GET_ITEM(loan, 1) || !PyTuple_GET_ITEM(loan, 2) || !PyTuple_GET_ITEM(loan, 4) ||
        PyDict_SetItem(self->loans, lease, loan) < 0) {
        Py_CLEAR(lease);
    } else {
        SHM_STEP(lend_put_down);
        block->leases++;
        SHM_STEP(lend_counted);
    }
    Py_XDECREF(loan);
    return lease;
}

static PyObject *ledger_lend(LedgerObject *self, PyObject *const *args, Py_ssize_t count)
{
    struct native_state *state = native_state_of(Py_TYPE(self));
    if (count != 4 || !PyObject_TypeCheck(args[0], state->block)) {
        PyErr_SetString(PyExc_TypeError, "lend takes a block, offset, nbytes and method");
        return NULL;
    }
    Py_ssize_t offset = PyLong_AsSsize_t(args[1]), nbytes = PyLong_AsSsize_t(args[2]);
    return PyErr_Occurred() ? NULL : lend(self, self->next++, (BlockObject *)args[0], offset, nbytes, args[3]);
}

/* Whether the peer has the region of a block. -1: error. */
static int is_attached(LedgerObject *self, PyObject *block)
{
    PyObject *region = PyObject_GetAttr(block, self->region_name);
    PyObject *attached = region ? PyObject_GetAttr(region, self->attached_name) : NULL;
    int answer = attached ? PyObject_IsTrue(attached) : -1;
    Py_XDECREF(region);
    Py_XDECREF(attached);
    return answer;
}

/* The block that an object with the buffer protocol fills from its beginning, in one run; NULL: none, or error. Borrowed. */
static PyObject *block_of(LedgerObject *self, PyObject *exporter, Py_ssize_t *nbytes)
{
    Py_buffer buffer;
    if (!PyObject_CheckBuffer(exporter))
        return NULL;
    if (PyObject_GetBuffer(exporter, &buffer, PyBUF_STRIDES) < 0) {
        PyErr_Clear(); /* the slow way meets it again, and tells the kinds of errors apart */
        return NULL;
    }
    *nbytes = buffer.len;
    PyObject *address = PyBuffer_IsContiguous(&buffer, 'A') ? PyLong_FromVoidPtr(buffer.buf) : NULL;
    PyBuffer_Release(&buffer);
    PyObject *block = address ? PyDict_GetItemWithError(self->blocks, address) : NULL;
    Py_XDECREF(address);
    if (!block || !PyObject_TypeCheck(block, native_state_of(Py_TYPE(self))->block))
        return NULL;
    return ((BlockObject *)block)->nbytes >= *nbytes ? block : NULL;
}

/* The payload of one reference and a body. */
static PyObject *refer_to(const struct shm_reference *reference, PyObject *body)
{
    Py_ssize_t table = (Py_ssize_t)shm_references_bytes(1);
    PyObject *payload = PyBytes_FromStringAndSize(NULL, table + PyBytes_GET_SIZE(body));
    if (!payload)
        return NULL;
    uint8_t *at = (uint8_t *)PyBytes_AS_STRING(payload);
    shm_references_begin(at, 1);
    shm_reference_put(at, 0, reference);
    memcpy(at + table, PyBytes_AS_STRING(body), (size_t)PyBytes_GET_SIZE(body));
    return payload;
}

PyObject *ledger_refer_quickly(PyObject *op, PyObject *exporter, PyObject *method, PyObject *body, PyObject **lease)
{
    LedgerObject *self = (LedgerObject *)op;
    Py_ssize_t body_bytes = PyBytes_GET_SIZE(body), nbytes;
    if (PyDict_GET_SIZE(self->loans) >= self->mark || body_bytes > self->longest_body)
        return NULL;
    PyObject *block = Py_XNewRef(block_of(self, exporter, &nbytes));
    if (!block || nbytes > self->largest_message - body_bytes || is_attached(self, block) <= 0) {
        Py_XDECREF(block);
        return NULL;
    }
    struct shm_reference reference = {
        .block = ((BlockObject *)block)->number, .generation = self->next++, .offset = 0, .nbytes = (uint64_t)nbytes};
    PyObject *payload = refer_to(&reference, body);
    SHM_STEP(refer_written);
    *lease = payload ? lend(self, reference.generation, (BlockObject *)block, 0, nbytes, method) : NULL;
    Py_DECREF(block);
    if (!*lease)
        Py_CLEAR(payload);
    return payload;
}

void ledger_undo(PyObject *op, PyObject *lease)
{
    PyObject *type, *value, *traceback; /* of why it is undone */
    PyErr_Fetch(&type, &value, &traceback);
    LedgerObject *self = (LedgerObject *)op;
    PyObject *loan = PyDict_GetItemWithError(self->loans, lease);
    if (loan) { /* else it was released meanwhile: by nobody but a finalizer */
        ((BlockObject *)PyTuple_GET_ITEM(loan, 0))->leases--; /* whoever passed the array still holds the block */
        PyDict_DelItem(self->loans, lease);
    }
    PyErr_Restore(type, value, traceback);
}

static PyObject *ledger_refer(LedgerObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3 || !PyBytes_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError, "refer takes an exporter, method and bytes");
        return NULL;
    }
    PyObject *lease, *payload = ledger_refer_quickly((PyObject *)self, args[0], args[1], args[2], &lease);
    if (!payload)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    PyObject *answer = PyTuple_New(2);
    if (!answer) {
        ledger_undo((PyObject *)self, lease);
        Py_DECREF(payload);
        Py_DECREF(lease);
        return NULL;
    }
    PyTuple_SET_ITEM(answer, 0, payload);
    PyTuple_SET_ITEM(answer, 1, lease);
    return answer;
}

/* Ends one lease. 1: it is over; 0: no such lease is out on that block; -1: error. */
static int take_back(LedgerObject *self, PyObject *entry, PyObject *unused)
{
    if (!PyTuple_CheckExact(entry) || PyTuple_GET_SIZE(entry) != 2) {
        PyErr_SetString(PyExc_TypeError, "a release is a tuple of block and generation");
        return -1;
    }
    unsigned long long number = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(entry, 0));
    PyObject *lease = PyTuple_GET_ITEM(entry, 1);
    PyObject *loan = PyErr_Occurred() ? NULL : PyDict_GetItemWithError(self->loans, lease);
    if (!loan)
        return PyErr_Occurred() ? -1 : 0;
    if (!Py_IS_TYPE(loan, self->loan)) {
        PyErr_SetString(PyExc_TypeError, "the ledger holds what it did not lend");
        return -1;
    }
    BlockObject *block = (BlockObject *)PyTuple_GET_ITEM(loan, 0);
    if (block->number != number)
        return 0;
    Py_INCREF(block);
    SHM_STEP(take_back_found);
    int done = PyDict_DelItem(self->loans, lease);
    SHM_STEP(take_back_struck);
    if (!done && --block->leases == 0 && !block->handles)
        done = PyList_Append(unused, (PyObject *)block);
    SHM_STEP(take_back_ended);
    Py_DECREF(block);
    return done < 0 ? -1 : 1;
}

static PyObject *ledger_take_back(LedgerObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyList_CheckExact(args[0]) || !PyList_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "take_back takes two lists");
        return NULL;
    }
    Py_ssize_t i = 0;
    for (; i < PyList_GET_SIZE(args[0]); i++) {
        PyObject *entry = Py_NewRef(PyList_GET_ITEM(args[0], i));
        int done = take_back(self, entry, args[1]);
        Py_DECREF(entry);
        if (done < 0)
            return NULL;
        if (!done)
            break;
    }
    return PyLong_FromSsize_t(i);
}

static PyMethodDef ledger_methods[] = {
    {"lend", (PyCFunction)(void (*)(void))ledger_lend, METH_FASTCALL,
     PyDoc_STR("lend(block, offset, nbytes, method) -> int: the number of a new lease on part of a block.")},
    {"refer", (PyCFunction)(void (*)(void))ledger_refer, METH_FASTCALL,
     PyDoc_STR("refer(exporter, method, body) -> (payload, lease) | None\n\n"
               "A payload that refers to an object whose memory begins a block, and its new lease. None: it is no such\n"
               "object, or something is to be looked at first: the peer lacks the region, the message is too long, or\n"
               "`mark` leases are out.")},
    {"take_back", (PyCFunction)(void (*)(void))ledger_take_back, METH_FASTCALL,
     PyDoc_STR("take_back(entries, unused) -> int\n\n"
               "End the leases of a list of (block, generation), up to the first that is not out. Appends to `unused` each\n"
               "block that nobody uses any more. Returns how many were ended.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef ledger_members[] = {
    {"loans", T_OBJECT_EX, offsetof(LedgerObject, loans), READONLY, PyDoc_STR("The leases that are out, by number.")},
    {"blocks", T_OBJECT_EX, offsetof(LedgerObject, blocks), READONLY, PyDoc_STR("Every block, by address.")},
    {"mark", T_PYSSIZET, offsetof(LedgerObject, mark), 0, PyDoc_STR("From how many leases on `refer` gives None.")},
    {"longest_body", T_PYSSIZET, offsetof(LedgerObject, longest_body), 0, PyDoc_STR("What `refer` takes, bytes.")},
    {"largest_message", T_PYSSIZET, offsetof(LedgerObject, largest_message), 0,
     PyDoc_STR("How long body and memory may be together, bytes.")},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot ledger_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Ledger(loan)\n\nThe leases that are out. Each is kept as a loan, a NamedTuple of block,\n"
                                  "offset, nbytes, method and the monotonic time in ns.")},
    {Py_tp_new, (void *)ledger_new},
    {Py_tp_dealloc, (void *)ledger_dealloc},
    {Py_tp_traverse, (void *)ledger_traverse},
    {Py_tp_clear, (void *)ledger_clear},
    {Py_tp_methods, ledger_methods},
    {Py_tp_members, ledger_members},
    {0, NULL},
};

static PyType_Spec ledger_spec = {
    .name = "shmrpc._native.Ledger",
    .basicsize = sizeof(LedgerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ledger_slots,
};

int add_ledger_types(PyObject *module, struct native_state *state)
{
    state->block = (PyTypeObject *)PyType_FromModuleAndSpec(module, &block_spec, NULL);
    if (!state->block || PyModule_AddType(module, state->block) < 0)
        return -1;
    state->ledger = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ledger_spec, NULL);
    return state->ledger ? PyModule_AddType(module, state->ledger) : -1;
}
