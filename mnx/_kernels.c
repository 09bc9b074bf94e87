/* The loops of a gradient exchange that Python makes longer than their work.
 *
 *     alike     are these arrays as those of the last step were?
 *     gather    many arrays -> one flat buffer
 *     add       flat buffers, added up from left to right and divided
 *     scatter   one flat buffer -> many arrays
 *
 * Each answers False, having done nothing that counts, for what it does not know: other dtypes and
 * layouts, subclasses, GPUs. Then NumPy does it (mnx/packing.py), to the same bits. Between float32
 * and float16 they convert, where the processor has instructions for it.
 */
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <Python.h>
#include <math.h>
#include <numpy/arrayobject.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

enum {
    LAYOUT = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED,
    LONG = 1 << 16, /* elements, from which on other threads run meanwhile */
    BLOCK = 2048,   /* elements that stay in the nearest cache */
};

/* --- what is an array here ---------------------------------------------------------------- */

/* Its elements are numbers in a row, so their bytes are all there is to it. */
static int is_plain(PyObject *x, int flags)
{
    if (!PyArray_CheckExact(x))
        return 0;
    PyArrayObject *array = (PyArrayObject *)x;
    int type = PyArray_TYPE(array);
    return (type <= NPY_CLONGDOUBLE || type == NPY_HALF) && PyArray_ISNOTSWAPPED(array) &&
           (PyArray_FLAGS(array) & flags) == flags;
}

static int has_dtype(PyObject *x, PyObject *other)
{
    return PyArray_DESCR((PyArrayObject *)x) == PyArray_DESCR((PyArrayObject *)other);
}

static char *bytes_of(PyObject *x) { return PyArray_BYTES((PyArrayObject *)x); }

static npy_intp size_of(PyObject *x) { return PyArray_SIZE((PyArrayObject *)x); }

/* --- 16 bits ------------------------------------------------------------------------------- */

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define WITH_F16C __attribute__((target("avx,f16c")))

enum { AT_ONCE = 8 };

static int halves_are_fast(void) { return __builtin_cpu_supports("f16c"); }

/* To the nearest, to even between two, as NumPy. */
WITH_F16C static void narrow(void *to, const void *from, npy_intp count)
{
    uint16_t *halves = to;
    const float *numbers = from;
    for (; count >= AT_ONCE; count -= AT_ONCE, halves += AT_ONCE, numbers += AT_ONCE)
        _mm_storeu_si128((__m128i *)halves, _mm256_cvtps_ph(_mm256_loadu_ps(numbers), 0));
    float rest[AT_ONCE] = {0};
    uint16_t narrowed[AT_ONCE];
    memcpy(rest, numbers, (size_t)count * sizeof(float));
    _mm_storeu_si128((__m128i *)narrowed, _mm256_cvtps_ph(_mm256_loadu_ps(rest), 0));
    memcpy(halves, narrowed, (size_t)count * sizeof(uint16_t));
}

WITH_F16C static void widen(void *to, const void *from, npy_intp count)
{
    float *numbers = to;
    const uint16_t *halves = from;
    for (; count >= AT_ONCE; count -= AT_ONCE, halves += AT_ONCE, numbers += AT_ONCE)
        _mm256_storeu_ps(numbers, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves)));
    uint16_t rest[AT_ONCE] = {0};
    float widened[AT_ONCE];
    memcpy(rest, halves, (size_t)count * sizeof(uint16_t));
    _mm256_storeu_ps(widened, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)rest)));
    memcpy(numbers, widened, (size_t)count * sizeof(float));
}
#else
static int halves_are_fast(void) { return 0; }
static void narrow(void *to, const void *from, npy_intp count) {}
static void widen(void *to, const void *from, npy_intp count) {}
#endif

/* --- gather and scatter -------------------------------------------------------------------- */

typedef void (*Conversion)(void *to, const void *from, npy_intp count);

/* Tell whether elements of one array can be put into another, and by which conversion, if any. */
static int can_put(PyObject *into, PyObject *from, Conversion *conversion)
{
    *conversion = NULL;
    if (has_dtype(into, from))
        return 1;
    int to = PyArray_TYPE((PyArrayObject *)into), of = PyArray_TYPE((PyArrayObject *)from);
    if (of == NPY_FLOAT && to == NPY_HALF)
        *conversion = narrow;
    else if (of == NPY_HALF && to == NPY_FLOAT)
        *conversion = widen;
    return *conversion != NULL && halves_are_fast();
}

static void put(void *to, const void *from, npy_intp count, int itemsize, Conversion conversion)
{
    if (conversion == NULL)
        memcpy(to, from, (size_t)count * (size_t)itemsize);
    else
        conversion(to, from, count);
}

/* Put all arrays into the flat one, or out of it; 0 if that is not to be done here. */
static int put_all(PyObject *flat, PyObject *arrays, int inwards)
{
    int read = LAYOUT, write = LAYOUT | NPY_ARRAY_WRITEABLE;
    if (!PyList_CheckExact(arrays) || !is_plain(flat, inwards ? write : read))
        return 0;
    int itemsize = (int)PyArray_ITEMSIZE((PyArrayObject *)flat);
    char *at = bytes_of(flat);
    npy_intp left = size_of(flat);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arrays); i++) {
        PyObject *x = PyList_GET_ITEM(arrays, i);
        Conversion conversion;
        if (!is_plain(x, inwards ? read : write) || size_of(x) > left ||
            !can_put(inwards ? flat : x, inwards ? x : flat, &conversion))
            return 0;
        npy_intp count = size_of(x);
        char *to = inwards ? at : bytes_of(x), *from = inwards ? bytes_of(x) : at;
        if (count < LONG) {
            put(to, from, count, itemsize, conversion);
        } else {
            Py_INCREF(x);
            Py_BEGIN_ALLOW_THREADS
            put(to, from, count, itemsize, conversion);
            Py_END_ALLOW_THREADS
            Py_DECREF(x);
        }
        at += count * itemsize;
        left -= count;
    }
    return left == 0;
}

static PyObject *gather(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    return PyBool_FromLong(count == 2 && put_all(args[1], args[0], 1));
}

static PyObject *scatter(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    return PyBool_FromLong(count == 2 && put_all(args[0], args[1], 0));
}

/* --- add ------------------------------------------------------------------------------------ */

/* total = (part 0 + part 1 + ...) / divisor, and the same in `twin` if there is one, which may be
 * one of the parts. Block by block, so that only the parts are read from afar. As mnx.packing does:
 * a division by a power of two is a product, which gives the same bits. */
#define DEFINE_ADD(NAME, T)                                                                        \
    FOR_EACH_CPU static void NAME(char **parts, Py_ssize_t count, char *total, char *twin,         \
                                  npy_intp size, double by)                                        \
    {                                                                                              \
        int exponent;                                                                              \
        T divisor = (T)by, factor = (T)(1 / by);                                                   \
        int is_power = frexp(by, &exponent) == 0.5;                                                \
        for (npy_intp start = 0; start < size; start += BLOCK) {                                   \
            npy_intp length = size - start < BLOCK ? size - start : BLOCK;                         \
            T *sum = (T *)total + start;                                                           \
            const T *first = (const T *)parts[0] + start, *second = (const T *)parts[1] + start;   \
            for (npy_intp i = 0; i < length; i++)                                                  \
                sum[i] = first[i] + second[i];                                                     \
            for (Py_ssize_t p = 2; p < count; p++) {                                               \
                const T *part = (const T *)parts[p] + start;                                       \
                for (npy_intp i = 0; i < length; i++)                                              \
                    sum[i] += part[i];                                                             \
            }                                                                                      \
            if (is_power && by != 1)                                                               \
                for (npy_intp i = 0; i < length; i++)                                              \
                    sum[i] *= factor;                                                              \
            else if (by != 1)                                                                      \
                for (npy_intp i = 0; i < length; i++)                                              \
                    sum[i] /= divisor;                                                             \
            if (twin != NULL)                                                                      \
                memcpy((T *)twin + start, sum, (size_t)length * sizeof(T));                        \
        }                                                                                          \
    }

DEFINE_ADD(add_float, float)
DEFINE_ADD(add_double, double)

enum { MOST_PARTS = 1024 };

static int fits(PyObject *x, PyObject *total, int flags)
{
    return is_plain(x, flags) && has_dtype(x, total) && size_of(x) == size_of(total);
}

/* Put the parts' addresses into `found`; return how many, or 0 if that is not to be done here. */
static Py_ssize_t addresses(PyObject *parts, PyObject *total, char **found)
{
    Py_ssize_t count = PyList_CheckExact(parts) ? PyList_GET_SIZE(parts) : 0;
    if (count < 2 || count > MOST_PARTS || !is_plain(total, LAYOUT | NPY_ARRAY_WRITEABLE))
        return 0;
    for (Py_ssize_t p = 0; p < count; p++) {
        PyObject *part = PyList_GET_ITEM(parts, p);
        if (!fits(part, total, LAYOUT))
            return 0;
        found[p] = bytes_of(part);
    }
    return count;
}

/* add(parts, total, divisor, twin or None) */
static PyObject *add(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    char *parts[MOST_PARTS];
    PyObject *total = args[1], *twin = given == 4 ? args[3] : NULL;
    Py_ssize_t count = given == 4 ? addresses(args[0], total, parts) : 0;
    if (count == 0)
        Py_RETURN_FALSE;
    int type = PyArray_TYPE((PyArrayObject *)total);
    if (type != NPY_FLOAT && type != NPY_DOUBLE)
        Py_RETURN_FALSE;
    if (twin != Py_None && !fits(twin, total, LAYOUT | NPY_ARRAY_WRITEABLE))
        Py_RETURN_FALSE;
    double by = PyFloat_AsDouble(args[2]);
    if (by == -1.0 && PyErr_Occurred())
        return NULL;
    npy_intp size = size_of(total);
    (type == NPY_FLOAT ? add_float : add_double)(parts, count, bytes_of(total),
                                                 twin == Py_None ? NULL : bytes_of(twin), size, by);
    Py_RETURN_TRUE;
}

/* --- alike ---------------------------------------------------------------------------------- */

static int has_shape(PyArrayObject *array, PyObject *shape)
{
    if (!PyTuple_CheckExact(shape) || PyTuple_GET_SIZE(shape) != PyArray_NDIM(array))
        return 0;
    for (int axis = 0; axis < PyArray_NDIM(array); axis++)
        if (PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, axis)) != PyArray_DIM(array, axis))
            return 0;
    return 1;
}

/* Tell whether no object is in the list twice: by a table of those seen, at most half full. */
static int all_different(PyObject *list)
{
    size_t slots = 4;
    while (slots < 2 * (size_t)PyList_GET_SIZE(list))
        slots *= 2;
    PyObject **seen = calloc(slots, sizeof(PyObject *));
    int different = seen != NULL;
    for (Py_ssize_t i = 0; different && i < PyList_GET_SIZE(list); i++) {
        PyObject *x = PyList_GET_ITEM(list, i);
        size_t slot = (size_t)(((uint64_t)(uintptr_t)x * 0x9E3779B97F4A7C15u) >> 32) & (slots - 1);
        while (seen[slot] != NULL && seen[slot] != x)
            slot = (slot + 1) & (slots - 1);
        different = seen[slot] == NULL;
        seen[slot] = x;
    }
    free(seen);
    return different;
}

/* alike(arrays, shapes, dtypes): arrays that own their memory, each one there once */
static PyObject *alike(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 3)
        Py_RETURN_FALSE;
    PyObject *arrays = args[0], *shapes = args[1], *dtypes = args[2];
    if (!PyList_CheckExact(arrays) || !PyList_CheckExact(shapes) || !PyList_CheckExact(dtypes))
        Py_RETURN_FALSE;
    Py_ssize_t count = PyList_GET_SIZE(arrays);
    if (count != PyList_GET_SIZE(shapes) || count != PyList_GET_SIZE(dtypes))
        Py_RETURN_FALSE;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *x = PyList_GET_ITEM(arrays, i);
        if (!PyArray_CheckExact(x) || !PyArray_CHKFLAGS((PyArrayObject *)x, NPY_ARRAY_OWNDATA) ||
            (PyObject *)PyArray_DESCR((PyArrayObject *)x) != PyList_GET_ITEM(dtypes, i) ||
            !has_shape((PyArrayObject *)x, PyList_GET_ITEM(shapes, i)))
            Py_RETURN_FALSE;
    }
    return PyBool_FromLong(all_different(arrays));
}

/* --- the module ------------------------------------------------------------------------------ */

#define METHOD(NAME) {#NAME, (PyCFunction)(void (*)(void))NAME, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {METHOD(alike), METHOD(gather), METHOD(scatter), METHOD(add), {NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "mnx._kernels", "The loops of a gradient exchange.", -1, methods,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    import_array();
    return PyModule_Create(&definition);
}
