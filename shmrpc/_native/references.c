/* references.c: open_references and pack_references, which turn the table at the beginning of a payload into Views, and
 * the other way round. What a table may say is checked in references.h.
 */
#include "binding.h"
#include "references.h"

/* Where the slab of one extent lies: (mapping, slab_offset, slab_bytes). */
struct extent {
    PyObject *mapping; /* borrowed */
    Py_ssize_t offset;
    Py_ssize_t nbytes;
};

static int find_extent(PyObject *extents, uint32_t number, struct extent *extent)
{
    PyObject *key = PyLong_FromUnsignedLong(number);
    if (!key)
        return -1;
    PyObject *found = PyDict_GetItemWithError(extents, key); /* borrowed */
    if (!found && !PyErr_Occurred())
        PyErr_SetObject(PyExc_KeyError, key);
    Py_DECREF(key);
    if (!found)
        return -1;
    if (!PyTuple_CheckExact(found) || PyTuple_GET_SIZE(found) != 3) {
        PyErr_SetString(PyExc_TypeError, "an extent is a tuple of a mapping, an offset and a size");
        return -1;
    }
    extent->mapping = PyTuple_GET_ITEM(found, 0);
    extent->offset = PyLong_AsSsize_t(PyTuple_GET_ITEM(found, 1));
    extent->nbytes = PyLong_AsSsize_t(PyTuple_GET_ITEM(found, 2));
    if (PyErr_Occurred())
        return -1;
    if (extent->offset < 0 || extent->nbytes < 0 || extent->nbytes > PY_SSIZE_T_MAX - extent->offset) {
        PyErr_Format(PyExc_ValueError, "%zd bytes at %zd are no extent", extent->nbytes, extent->offset);
        return -1;
    }
    return 0;
}

/* A View that releases nothing yet; or, for a block of this side, its four numbers. */
static PyObject *open_one(struct native_state *state, PyObject *extents, const struct shm_reference *reference)
{
    if (shm_reference_is_peer_owned(reference))
        return Py_BuildValue("(KKKK)", (unsigned long long)(reference->block & ~SHM_PEER_OWNED),
                             (unsigned long long)reference->generation, (unsigned long long)reference->offset,
                             (unsigned long long)reference->nbytes);
    struct extent extent;
    if (find_extent(extents, shm_reference_extent(reference), &extent) < 0)
        return NULL;
    uint64_t at;
    if (!shm_reference_locate(reference, (uint64_t)extent.nbytes, &at)) {
        PyErr_Format(state->corrupt, "a reference of the peer, to %llu bytes at %llu of block %llu, leads out of its slab of "
                     "%zd bytes", (unsigned long long)reference->nbytes, (unsigned long long)reference->offset,
                     (unsigned long long)reference->block, extent.nbytes);
        return NULL;
    }
    PyObject *mapping = Py_NewRef(extent.mapping);
    PyObject *view = view_open(state, mapping, extent.offset + (Py_ssize_t)at, (Py_ssize_t)reference->nbytes,
                               reference->block, reference->generation, false);
    Py_DECREF(mapping);
    return view;
}

static PyObject *raise_bad_table(struct native_state *state, enum shm_references_status status, uint32_t count,
                                 Py_ssize_t length, Py_ssize_t most)
{
    if (status == SHM_REFERENCES_MANY)
        PyErr_Format(state->corrupt, "the peer sent %lu references in one record, allowed are %zd", (unsigned long)count,
                     most);
    else if (status == SHM_REFERENCES_DIRTY)
        PyErr_SetString(state->corrupt, "the second word of the peer's table of references must be zero, and is not");
    else
        PyErr_Format(state->corrupt, "the peer sent a table of %lu references, which does not fit in its payload of %zd bytes",
                     (unsigned long)count, length);
    return NULL;
}

PyObject *open_references(PyObject *module, PyObject *const *args, Py_ssize_t argument_count)
{
    struct native_state *state = PyModule_GetState(module);
    if (argument_count != 4 || !PyBytes_CheckExact(args[0]) || !PyDict_CheckExact(args[1]) ||
        !Py_IS_TYPE(args[2], state->releaser)) {
        PyErr_SetString(PyExc_TypeError, "open_references takes bytes, a dict of extents, a Releaser and a number");
        return NULL;
    }
    Py_ssize_t most = PyLong_AsSsize_t(args[3]);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    const uint8_t *payload = (const uint8_t *)PyBytes_AS_STRING(args[0]);
    Py_ssize_t length = PyBytes_GET_SIZE(args[0]);
    uint32_t count;
    enum shm_references_status status = shm_references_check(payload, (uint64_t)length, most < 0 ? 0 : (uint64_t)most, &count);
    if (status != SHM_REFERENCES_OK)
        return raise_bad_table(state, status, count, length, most);

    PyObject *opened = PyList_New((Py_ssize_t)count);
    if (!opened)
        return NULL;
    for (uint32_t i = 0; i < count; i++) {
        struct shm_reference reference = shm_reference_at(payload, i);
        PyObject *one = open_one(state, args[1], &reference);
        if (!one) {
            Py_DECREF(opened); /* with Views that release nothing: the caller may try again, or give up */
            return NULL;
        }
        PyList_SET_ITEM(opened, (Py_ssize_t)i, one);
    }
    Py_ssize_t table = (Py_ssize_t)shm_references_bytes(count);
    PyObject *body = PyBytes_FromStringAndSize((const char *)payload + table, length - table);
    PyObject *answer = body ? PyTuple_New(2) : NULL;
    if (!answer) {
        Py_XDECREF(body);
        Py_DECREF(opened);
        return NULL;
    }
    SHM_STEP(references_opened);
    uint32_t views = 0;
    for (uint32_t i = 0; i < count; i++) { /* nothing can fail any more: from here on each is released once */
        if (Py_IS_TYPE(PyList_GET_ITEM(opened, (Py_ssize_t)i), state->view)) {
            view_release_to(PyList_GET_ITEM(opened, (Py_ssize_t)i), args[2]);
            views++;
        }
    }
    releaser_count_opened(args[2], views);
    SHM_STEP(references_owed);
    PyTuple_SET_ITEM(answer, 0, body);
    PyTuple_SET_ITEM(answer, 1, opened);
    return answer;
}

static int reference_of(PyObject *object, struct shm_reference *reference)
{
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 4) {
        PyErr_SetString(PyExc_TypeError, "a reference is a tuple of block, generation, offset and nbytes");
        return -1;
    }
    *reference = (struct shm_reference){
        .block = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(object, 0)),
        .generation = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(object, 1)),
        .offset = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(object, 2)),
        .nbytes = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(object, 3)),
    };
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *pack_references(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t argument_count)
{
    if (argument_count != 2 || !PyList_CheckExact(args[0]) || !PyBytes_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "pack_references takes a list of references and bytes");
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(args[0]), body = PyBytes_GET_SIZE(args[1]);
    if ((uint64_t)count > UINT32_MAX || body > PY_SSIZE_T_MAX - (Py_ssize_t)shm_references_bytes((uint64_t)count)) {
        PyErr_SetString(PyExc_OverflowError, "more references than a table can count");
        return NULL;
    }
    Py_ssize_t table = (Py_ssize_t)shm_references_bytes((uint64_t)count);
    PyObject *payload = PyBytes_FromStringAndSize(NULL, table + body);
    if (!payload)
        return NULL;
    uint8_t *at = (uint8_t *)PyBytes_AS_STRING(payload);
    shm_references_begin(at, (uint32_t)count);
    for (Py_ssize_t i = 0; i < count; i++) {
        struct shm_reference reference;
        if (reference_of(PyList_GET_ITEM(args[0], i), &reference) < 0) {
            Py_DECREF(payload);
            return NULL;
        }
        shm_reference_put(at, (uint32_t)i, &reference);
    }
    memcpy(at + table, PyBytes_AS_STRING(args[1]), (size_t)body);
    SHM_STEP(references_packed);
    return payload;
}
