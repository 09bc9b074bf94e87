/* What Python makes longer than its work: the loops of a gradient exchange, the look at an array.
 *
 *     alike     are these arrays as those of the last step were?
 *     gather    many arrays -> one flat buffer
 *     add       flat buffers, added up from left to right and divided
 *     scatter   one flat buffer -> many arrays
 *     kind      the dtype and the shape of an array that can travel as it is
 *     as_bytes  its bytes as a flat array
 *     on_unused an array on memory that nobody else refers to
 *     largest   the largest of what the ranks of a node have written into memory that they share
 *     addresses where arrays of one dtype begin
 *     reach     bytes of another process, read or written
 *     sum_share sums of arrays that are in other processes, written back there
 *     sum_in_window
 *               sums of arrays that go through memory that the ranks of a node share
 *
 * Each answers False, having done nothing that counts, for what it does not know: other dtypes and
 * layouts, subclasses, GPUs. Then NumPy does it (mnx/packing.py), to the same bits. Between float32
 * and float16 they convert, where the processor has instructions for it. What concerns other
 * processes is of no other use than mnx's own, and raises where it is called in another way.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <Python.h>
#include <math.h>
#include <numpy/arrayobject.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

enum {
    LAYOUT = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED,
    LONG = 1 << 14, /* elements, from which on other threads run meanwhile */
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
    int is_number = (type >= 0 && type <= NPY_CLONGDOUBLE) || type == NPY_HALF;
    return is_number && PyArray_ISNOTSWAPPED(array) && (PyArray_FLAGS(array) & flags) == flags;
}

/* Unpickled arrays have equal dtypes that are other objects, and hand them on. */
static int is_of_dtype(PyObject *x, PyObject *dtype)
{
    PyArray_Descr *own = PyArray_DESCR((PyArrayObject *)x);
    return (PyObject *)own == dtype ||
           (PyArray_DescrCheck(dtype) && PyArray_EquivTypes(own, (PyArray_Descr *)dtype));
}

static int has_dtype(PyObject *x, PyObject *other)
{
    return is_of_dtype(x, (PyObject *)PyArray_DESCR((PyArrayObject *)other));
}

static char *bytes_of(PyObject *x) { return PyArray_BYTES((PyArrayObject *)x); }

static npy_intp size_of(PyObject *x) { return PyArray_SIZE((PyArrayObject *)x); }

static int is_of_words(PyObject *x, int dimensions)
{
    return is_plain(x, LAYOUT | NPY_ARRAY_WRITEABLE) &&
           PyArray_NDIM((PyArrayObject *)x) == dimensions &&
           PyArray_TYPE((PyArrayObject *)x) == NPY_INT64;
}

/* --- 16 bits ------------------------------------------------------------------------------- */

typedef void (*Conversion)(void *to, const void *from, npy_intp count);

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>

#define WITH_F16C __attribute__((target("avx,f16c")))

enum { AT_ONCE = 8, F16C = 1 << 29 };

static int halves_are_fast = 0;

/* Once: in a virtual machine the question takes longer than many a conversion. */
static void look_at_cpu(void)
{
    unsigned a, b, c, d;
    halves_are_fast =
        __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) && (c & F16C);
}

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

static Conversion conversion_of(int from, int to)
{
    Conversion known = from == NPY_FLOAT && to == NPY_HALF   ? narrow
                       : from == NPY_HALF && to == NPY_FLOAT ? widen
                                                             : NULL;
    return halves_are_fast ? known : NULL;
}
#else
static Conversion conversion_of(int from, int to) { return NULL; }
static void look_at_cpu(void) {}
#endif

/* --- gather and scatter -------------------------------------------------------------------- */

/* Tell whether elements of one array can be put into another, and by which conversion, if any. */
static int can_put(PyObject *into, PyObject *from, Conversion *conversion)
{
    *conversion = NULL;
    if (has_dtype(into, from))
        return 1;
    *conversion = conversion_of(PyArray_TYPE((PyArrayObject *)from),
                                PyArray_TYPE((PyArrayObject *)into));
    return *conversion != NULL;
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

/* Before a loop whose arrays may be the same, but do not overlap otherwise. */
#if defined(__GNUC__) && !defined(__clang__)
#define EACH_ALONE _Pragma("GCC ivdep")
#else
#define EACH_ALONE
#endif

/* total = (part 0 + part 1 + ...) / divisor, and the same in `twin` if there is one. The total may
 * be one of the first two parts, the twin any. Block by block, so that only the parts are read from
 * afar. As mnx.packing does: a division by a power of two is a product, which gives the same bits. */
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
            EACH_ALONE                                                                             \
            for (npy_intp i = 0; i < length; i++)                                                  \
                sum[i] = first[i] + second[i];                                                     \
            for (Py_ssize_t p = 2; p < count; p++) {                                               \
                const T *part = (const T *)parts[p] + start;                                       \
                EACH_ALONE                                                                         \
                for (npy_intp i = 0; i < length; i++)                                              \
                    sum[i] += part[i];                                                             \
            }                                                                                      \
            if (is_power && by != 1)                                                               \
                EACH_ALONE                                                                         \
                for (npy_intp i = 0; i < length; i++)                                              \
                    sum[i] *= factor;                                                              \
            else if (by != 1)                                                                      \
                EACH_ALONE                                                                         \
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

/* Tell whether these can be added up here. */
static int can_add(PyObject *parts, PyObject *total, PyObject *twin)
{
    Py_ssize_t count = PyList_CheckExact(parts) ? PyList_GET_SIZE(parts) : 0;
    if (count < 2 || count > MOST_PARTS || !is_plain(total, LAYOUT | NPY_ARRAY_WRITEABLE))
        return 0;
    int type = PyArray_TYPE((PyArrayObject *)total);
    if (type != NPY_FLOAT && type != NPY_DOUBLE)
        return 0;
    for (Py_ssize_t p = 0; p < count; p++)
        if (!fits(PyList_GET_ITEM(parts, p), total, LAYOUT))
            return 0;
    return twin == Py_None || fits(twin, total, LAYOUT | NPY_ARRAY_WRITEABLE);
}

/* add(parts, total, divisor, twin or None) */
static PyObject *add(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 4)
        Py_RETURN_FALSE;
    double by = PyFloat_AsDouble(args[2]);
    if (by == -1.0 && PyErr_Occurred())
        return NULL;
    if (!can_add(args[0], args[1], args[3]))
        Py_RETURN_FALSE;
    PyObject *parts = PyList_AsTuple(args[0]); /* whatever becomes of the list meanwhile */
    if (parts == NULL)
        return NULL;
    char *addresses[MOST_PARTS];
    Py_ssize_t count = PyTuple_GET_SIZE(parts);
    for (Py_ssize_t p = 0; p < count; p++)
        addresses[p] = bytes_of(PyTuple_GET_ITEM(parts, p));
    char *total = bytes_of(args[1]), *twin = args[3] == Py_None ? NULL : bytes_of(args[3]);
    npy_intp size = size_of(args[1]);
    int is_float = PyArray_TYPE((PyArrayObject *)args[1]) == NPY_FLOAT;
    Py_BEGIN_ALLOW_THREADS
    (is_float ? add_float : add_double)(addresses, count, total, twin, size, by);
    Py_END_ALLOW_THREADS
    Py_DECREF(parts);
    Py_RETURN_TRUE;
}

/* --- alike ---------------------------------------------------------------------------------- */

static int has_shape(PyArrayObject *array, PyObject *shape)
{
    if (!PyTuple_CheckExact(shape) || PyTuple_GET_SIZE(shape) != PyArray_NDIM(array))
        return 0;
    for (int axis = 0; axis < PyArray_NDIM(array); axis++) {
        PyObject *length = PyTuple_GET_ITEM(shape, axis);
        if (!PyLong_CheckExact(length) || PyLong_AsSsize_t(length) != PyArray_DIM(array, axis)) {
            PyErr_Clear(); /* a number that is too long */
            return 0;
        }
    }
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

/* alike(arrays, shapes, dtypes): arrays that own their memory, to be written, each one there once */
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
        if (!PyArray_CheckExact(x) ||
            !PyArray_CHKFLAGS((PyArrayObject *)x, NPY_ARRAY_OWNDATA | NPY_ARRAY_WRITEABLE) ||
            !is_of_dtype(x, PyList_GET_ITEM(dtypes, i)) ||
            !has_shape((PyArrayObject *)x, PyList_GET_ITEM(shapes, i)))
            Py_RETURN_FALSE;
    }
    return PyBool_FromLong(all_different(arrays));
}

/* --- one array ------------------------------------------------------------------------------ */

enum { MOST_DIMENSIONS = 14 }; /* MAX_NDIM of mnx/arrays.py */

/* kind(x) -> (dtype, shape) */
static PyObject *kind(PyObject *self, PyObject *x)
{
    if (!is_plain(x, LAYOUT) || PyArray_NDIM((PyArrayObject *)x) > MOST_DIMENSIONS)
        Py_RETURN_FALSE;
    PyArrayObject *array = (PyArrayObject *)x;
    PyObject *shape = PyArray_IntTupleFromIntp(PyArray_NDIM(array), PyArray_DIMS(array));
    PyObject *found = shape ? PyTuple_Pack(2, (PyObject *)PyArray_DESCR(array), shape) : NULL;
    Py_XDECREF(shape);
    return found;
}

/* as_bytes(x) -> a view */
static PyObject *as_bytes(PyObject *self, PyObject *x)
{
    if (!is_plain(x, LAYOUT))
        Py_RETURN_FALSE;
    PyArrayObject *array = (PyArrayObject *)x;
    npy_intp length = PyArray_NBYTES(array);
    int flags = LAYOUT | (PyArray_FLAGS(array) & NPY_ARRAY_WRITEABLE);
    PyObject *view = PyArray_New(&PyArray_Type, 1, &length, NPY_UINT8, NULL, PyArray_DATA(array), 1,
                                 flags, NULL);
    if (view == NULL)
        return NULL;
    Py_INCREF(x);
    if (PyArray_SetBaseObject((PyArrayObject *)view, x) < 0) /* takes it, even if it fails */
        Py_CLEAR(view);
    return view;
}

/* addresses(arrays, dtype, found, writes): where plain arrays of that dtype begin */
static PyObject *addresses(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 4 || !PyList_CheckExact(args[0]) || !is_of_words(args[2], 1) ||
        size_of(args[2]) != PyList_GET_SIZE(args[0]))
        Py_RETURN_FALSE;
    int flags = args[3] == Py_True ? LAYOUT | NPY_ARRAY_WRITEABLE : LAYOUT;
    int64_t *found = (int64_t *)bytes_of(args[2]);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[0]); i++) {
        PyObject *x = PyList_GET_ITEM(args[0], i);
        if (!is_plain(x, flags) || !is_of_dtype(x, args[1]))
            Py_RETURN_FALSE;
        found[i] = (int64_t)(uintptr_t)bytes_of(x);
    }
    Py_RETURN_TRUE;
}

/* on_unused(blocks, offset, dtype, shape) -> an array on the first block that only the list refers
 * to; None if there is none */
static PyObject *on_unused(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 4 || !PyList_CheckExact(args[0]) || !PyArray_DescrCheck(args[2]))
        Py_RETURN_FALSE;
    PyArray_Descr *dtype = (PyArray_Descr *)args[2];
    PyArray_Dims shape = {NULL, 0};
    npy_intp offset = PyLong_AsSsize_t(args[1]);
    if ((offset == -1 && PyErr_Occurred()) || !PyArray_IntpConverter(args[3], &shape))
        return NULL;
    npy_intp stop = offset + PyArray_MultiplyList(shape.ptr, shape.len) * PyDataType_ELSIZE(dtype);
    PyObject *found = Py_None;
    for (Py_ssize_t i = 0; found == Py_None && i < PyList_GET_SIZE(args[0]); i++) {
        PyObject *block = PyList_GET_ITEM(args[0], i);
        if (Py_REFCNT(block) != 1 || !is_plain(block, LAYOUT | NPY_ARRAY_WRITEABLE) ||
            PyArray_NBYTES((PyArrayObject *)block) < stop || PyDataType_REFCHK(dtype))
            continue;
        Py_INCREF(block);
        Py_INCREF(dtype); /* which the array takes */
        found = PyArray_NewFromDescr(&PyArray_Type, dtype, shape.len, shape.ptr, NULL,
                                     bytes_of(block) + offset, LAYOUT | NPY_ARRAY_WRITEABLE, NULL);
        if (found == NULL)
            Py_DECREF(block);
        else if (PyArray_SetBaseObject((PyArrayObject *)found, block) < 0)
            Py_CLEAR(found);
    }
    PyDimMem_FREE(shape.ptr);
    if (found == Py_None)
        Py_INCREF(found);
    return found;
}

/* --- largest -------------------------------------------------------------------------------- */

enum {
    ROOM = 40,          /* words that a rank can bring */
    ROW = 8 + 2 * ROOM, /* what it has: its turn in a cache line, the words of two turns */
};

#if defined(__GNUC__)
#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE()
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#define GIVE_AWAY() sched_yield()
#else
#define GIVE_AWAY()
#endif

static int64_t turn_of(const int64_t *row) { return __atomic_load_n(row, __ATOMIC_ACQUIRE); }

/* Look so often; if that is negative, give the core away between looks, to a rank that is late. */
static int has_come(const int64_t *row, int64_t turn, long looks)
{
    for (long look = 1; turn_of(row) < turn; look++) {
        if (look >= labs(looks))
            return 0;
        if (looks < 0)
            GIVE_AWAY();
        else
            PAUSE();
    }
    return 1;
}

/* Write this rank's words, unless that is done, and read the others'; 0 if one has yet to come. */
static int meet(int64_t *rows, npy_intp ranks, npy_intp rank, int64_t turn, int64_t *words,
                npy_intp count, long looks)
{
    for (npy_intp r = 0; r < ranks; r++) /* as ever, unless an error ended the last wait here */
        if (turn_of(rows + r * ROW) < turn - 1)
            return 0;
    int64_t *own = rows + rank * ROW, at = 8 + (turn & 1) * ROOM;
    if (turn_of(own) < turn) {
        memcpy(own + at, words, (size_t)count * sizeof(int64_t));
        __atomic_store_n(own, turn, __ATOMIC_RELEASE);
    }
    for (npy_intp r = 0; r < ranks; r++)
        if (!has_come(rows + r * ROW, turn, looks))
            return 0;
    for (npy_intp r = 0; r < ranks; r++)
        for (npy_intp i = 0; r != rank && i < count; i++)
            if (rows[r * ROW + at + i] > words[i])
                words[i] = rows[r * ROW + at + i];
    return 1;
}
#else
static int meet(int64_t *rows, npy_intp ranks, npy_intp rank, int64_t turn, int64_t *words,
                npy_intp count, long looks)
{
    return 0;
}
#endif

/* largest(rows, rank, turn, words, looks): False if a rank has not come, and then the same once more;
 * looks as in `has_come` */
static PyObject *largest(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 5 || !is_of_words(args[0], 2) || !is_of_words(args[3], 1))
        return PyErr_Format(PyExc_TypeError, "rows of int64, a rank, a turn, int64, a number");
    npy_intp ranks = PyArray_DIM((PyArrayObject *)args[0], 0), count = size_of(args[3]);
    npy_intp rank = PyLong_AsSsize_t(args[1]);
    int64_t turn = PyLong_AsLongLong(args[2]);
    long looks = PyLong_AsLong(args[4]);
    if (PyErr_Occurred())
        return NULL;
    if (PyArray_DIM((PyArrayObject *)args[0], 1) != ROW || count > ROOM || rank < 0 || rank >= ranks)
        return PyErr_Format(PyExc_ValueError, "another rank, longer rows or more words");
    int64_t *rows = (int64_t *)bytes_of(args[0]), *words = (int64_t *)bytes_of(args[3]);
    int have_met = meet(rows, ranks, rank, turn, words, count, looks < 0 ? 1 : looks);
    if (!have_met && looks < 0) {
        Py_BEGIN_ALLOW_THREADS
        have_met = meet(rows, ranks, rank, turn, words, count, looks);
        Py_END_ALLOW_THREADS
    }
    return PyBool_FromLong(have_met);
}

/* --- a window ------------------------------------------------------------------------------- */

enum { SOURCE, TARGET };

#if defined(__GNUC__)
enum { CACHE_LINE = 64, WINDOW_BUFFERS = 3 };

/* What sum_in_window is told: words, in arrays of as many dimensions as they have letters behind. */
typedef struct {
    const int64_t *slots;   /* R: where the slot of each rank begins; its turn is in the line before */
    const int64_t *places;  /* 2A: where the arrays are, and where their sums are wanted, or 0 */
    const int64_t *borders; /* A + 1: where, in bytes, they would begin in a row, and end */
    int64_t *progress;      /* 2: steps done, the turn before the first */
    npy_intp ranks, arrays, rank;
    int64_t chunk, itemsize; /* bytes */
    long looks;
    double by;
    char **parts; /* R: room */
} Passage;

/* Bytes of the arrays in a row. */
typedef struct {
    int64_t start, stop;
} Range;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t *turn_before(int64_t slot) { return (int64_t *)(uintptr_t)(slot - CACHE_LINE); }

/* What a rank sums of a chunk: `share` of mnx/communicators/chunks.py. */
static Range share_of(const Passage *p, int64_t chunk, npy_intp rank)
{
    int64_t start = chunk * p->chunk, length = smaller(p->chunk, p->borders[p->arrays] - start);
    int64_t count = length / p->itemsize;
    Range share = {start + count * rank / p->ranks * p->itemsize,
                   start + count * (rank + 1) / p->ranks * p->itemsize};
    return share;
}

/* The number of the array that holds a byte. */
static npy_intp array_at(const Passage *p, int64_t byte)
{
    npy_intp low = 0, high = p->arrays;
    while (high - low > 1) {
        npy_intp middle = (low + high) / 2;
        if (p->borders[middle] <= byte)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static char *byte_of(const Passage *p, int which, npy_intp array, int64_t byte)
{
    return (char *)(uintptr_t)p->places[which * p->arrays + array] + (byte - p->borders[array]);
}

/* Where a range is that lies in one array; otherwise NULL. */
static char *in_one(const Passage *p, int which, Range range)
{
    npy_intp array = array_at(p, range.start);
    int is_so = range.stop <= p->borders[array + 1];
    return is_so ? byte_of(p, which, array, range.start) : NULL;
}

/* Copy a range of the sources into a buffer, or the buffer into the targets. */
static void copy_range(const Passage *p, int which, Range range, char *buffer)
{
    npy_intp array = array_at(p, range.start);
    for (int64_t at = range.start, stop; at < range.stop; at = stop, array++) {
        stop = smaller(range.stop, p->borders[array + 1]);
        char *place = byte_of(p, which, array, at), *beside = buffer + (at - range.start);
        memcpy(which == SOURCE ? beside : place, which == SOURCE ? place : beside,
               (size_t)(stop - at));
    }
}

/* Where what a rank sends of a chunk goes through the window, or, if it is a target, the sum. */
static char *in_window(const Passage *p, int which, npy_intp rank, int64_t chunk, int64_t byte)
{
    int64_t slot = p->slots[which == SOURCE ? rank : 0];
    int64_t buffer = chunk % WINDOW_BUFFERS + (which == SOURCE ? 0 : WINDOW_BUFFERS);
    return (char *)(uintptr_t)slot + buffer * p->chunk + (byte - chunk * p->chunk);
}

/* Copy what the other ranks sum of a chunk into the window, or out of it. */
static void copy_others(const Passage *p, int which, int64_t chunk)
{
    Range own = share_of(p, chunk, p->rank), before = {chunk * p->chunk, own.start};
    Range after = {own.stop, smaller((chunk + 1) * p->chunk, p->borders[p->arrays])};
    copy_range(p, which, before, in_window(p, which, p->rank, chunk, before.start));
    copy_range(p, which, after, in_window(p, which, p->rank, chunk, after.start));
}

static int is_wanted(const Passage *p) { return p->places[p->arrays] != 0; }

/* Sum this rank's share of a chunk. */
static void sum_own(const Passage *p, int64_t chunk)
{
    Range own = share_of(p, chunk, p->rank);
    if (own.start == own.stop)
        return;
    for (npy_intp rank = 0; rank < p->ranks; rank++)
        p->parts[rank] = in_window(p, SOURCE, rank, chunk, own.start);
    char *as_it_is = in_one(p, SOURCE, own);
    if (as_it_is == NULL)
        copy_range(p, SOURCE, own, p->parts[p->rank]);
    else
        p->parts[p->rank] = as_it_is;
    char *total = in_window(p, TARGET, p->rank, chunk, own.start);
    char *twin = is_wanted(p) ? in_one(p, TARGET, own) : NULL;
    npy_intp count = (own.stop - own.start) / p->itemsize;
    int is_float = p->itemsize == sizeof(float);
    (is_float ? add_float : add_double)(p->parts, p->ranks, total, twin, count, p->by);
    if (is_wanted(p) && twin == NULL)
        copy_range(p, TARGET, own, total);
}

static int have_all_come(const Passage *p, int64_t turn)
{
    for (npy_intp rank = 0; rank < p->ranks; rank++)
        if (!has_come(turn_before(p->slots[rank]), turn, p->looks))
            return 0;
    return 1;
}

/* Say that this rank has come to turn k, and copy while it need not wait. */
static void arrive(const Passage *p, int64_t k, int64_t chunks)
{
    int64_t turn = p->progress[1] + 1 + k;
    if (k == 0)
        copy_others(p, SOURCE, 0);
    __atomic_store_n(turn_before(p->slots[p->rank]), turn, __ATOMIC_RELEASE);
    if (k + 1 < chunks)
        copy_others(p, SOURCE, k + 1);
    if (k >= 2 && is_wanted(p))
        copy_others(p, TARGET, k - 2);
}

/* As `_sum` of mnx/communicators/node_window.py; 0 if a rank has not come. */
static int pass(const Passage *p)
{
    int64_t *done = p->progress, chunks = (p->borders[p->arrays] + p->chunk - 1) / p->chunk;
    if (*done == 0)
        p->progress[1] = *turn_before(p->slots[p->rank]);
    for (; *done < 2 * (chunks + 1); ++*done) {
        int64_t k = *done / 2;
        if (*done % 2 == 0)
            arrive(p, k, chunks);
        else if (!have_all_come(p, p->progress[1] + 1 + k))
            return 0;
        else if (k < chunks)
            sum_own(p, k);
    }
    if (is_wanted(p))
        copy_others(p, TARGET, chunks - 1);
    return 1;
}

/* sum_in_window(slots, rank, looks, progress, places, borders, chunk, itemsize, divisor): False if a
 * rank has not come, and then the same once more; see `Passage` */
static PyObject *sum_in_window(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 9 || !is_of_words(args[0], 1) || !is_of_words(args[3], 1) ||
        !is_of_words(args[4], 2) || !is_of_words(args[5], 1))
        return PyErr_Format(PyExc_TypeError, "nine arguments, four of int64");
    Passage p = {
        .slots = (int64_t *)bytes_of(args[0]),
        .places = (int64_t *)bytes_of(args[4]),
        .borders = (int64_t *)bytes_of(args[5]),
        .progress = (int64_t *)bytes_of(args[3]),
        .ranks = size_of(args[0]),
        .arrays = size_of(args[5]) - 1,
        .rank = PyLong_AsSsize_t(args[1]),
        .chunk = PyLong_AsLongLong(args[6]),
        .itemsize = PyLong_AsLongLong(args[7]),
        .looks = PyLong_AsLong(args[2]),
        .by = PyFloat_AsDouble(args[8]),
    };
    if (PyErr_Occurred())
        return NULL;
    if (p.ranks < 2 || p.arrays < 1 || size_of(args[4]) != 2 * p.arrays || size_of(args[3]) != 2 ||
        p.rank < 0 || p.rank >= p.ranks || p.chunk < p.itemsize || p.borders[p.arrays] < 1 ||
        (p.itemsize != sizeof(float) && p.itemsize != sizeof(double)))
        return PyErr_Format(PyExc_ValueError, "other lengths, another rank or no numbers");
    p.parts = PyMem_New(char *, (size_t)p.ranks);
    if (p.parts == NULL)
        return PyErr_NoMemory();
    int is_done;
    Py_BEGIN_ALLOW_THREADS
    is_done = pass(&p);
    Py_END_ALLOW_THREADS
    PyMem_Free(p.parts);
    return PyBool_FromLong(is_done);
}
#else
static PyObject *sum_in_window(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    Py_RETURN_FALSE;
}
#endif

/* --- other processes ------------------------------------------------------------------------ */

#if defined(__linux__)
#include <errno.h>
#include <sys/uio.h>

enum { MOST_PIECES = 1024, BUFFERS = 3 }; /* IOV_MAX of Linux; see sum_share */

typedef struct iovec Stretch;

typedef ssize_t (*Move)(pid_t, const Stretch *, unsigned long, const Stretch *, unsigned long,
                        unsigned long);

/* Move all bytes between this process and another; an errno if that fails. */
static int move_all(Move move, pid_t pid, Stretch here, const Stretch *there, npy_intp count)
{
    ssize_t moved = move(pid, &here, 1, there, (unsigned long)count, 0);
    return moved < 0 ? errno : (size_t)moved < here.iov_len ? EFAULT : 0;
}

/* reach(pid, address, array, writes) -> errno, or 0: read bytes into the array, or write them */
static PyObject *reach(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 4 || !is_plain(args[2], LAYOUT | NPY_ARRAY_WRITEABLE))
        return PyErr_Format(PyExc_TypeError, "a process, an address, an array, a bool");
    pid_t pid = (pid_t)PyLong_AsLong(args[0]);
    size_t address = PyLong_AsSize_t(args[1]);
    int writes = PyObject_IsTrue(args[3]);
    if (PyErr_Occurred())
        return NULL;
    size_t length = (size_t)PyArray_NBYTES((PyArrayObject *)args[2]);
    Stretch here = {bytes_of(args[2]), length}, there = {(void *)address, length};
    return PyLong_FromLong(
        move_all(writes ? process_vm_writev : process_vm_readv, pid, here, &there, 1));
}

typedef void (*Add)(char **, Py_ssize_t, char *, char *, npy_intp, double);

/* What sum_share is told: words, in arrays of as many dimensions as they have letters behind. */
typedef struct {
    const int64_t *pids;             /* R: of each rank */
    const int64_t *places;           /* R2A: where its arrays are, and where it wants the sums, or 0 */
    const int64_t *pieces;           /* P4: number of an array, offsets there and there, length */
    const int64_t *chunks;           /* C2: the first piece, and their number */
    npy_intp ranks, arrays, count;   /* R, A, C */
    npy_intp rank;
    int for_all;
    size_t itemsize, room;           /* bytes; of a buffer */
    char *buffers[BUFFERS];
    double by;
    int failed_rank;
} Share;

/* List the pieces of a chunk as rank `rank` has them, or wants them; 0: it wants none. */
static npy_intp list_pieces(const Share *share, int which, npy_intp rank, npy_intp chunk,
                            Stretch *found)
{
    const int64_t *places = share->places + (2 * rank + which) * share->arrays;
    npy_intp first = share->chunks[2 * chunk], count = share->chunks[2 * chunk + 1];
    for (npy_intp i = 0; i < count; i++) {
        const int64_t *piece = share->pieces + 4 * (first + i);
        if (places[piece[0]] == 0)
            return 0;
        found[i].iov_base = (char *)(uintptr_t)places[piece[0]] + piece[1 + which];
        found[i].iov_len = (size_t)piece[3];
    }
    return count;
}

/* Copy between pieces and a buffer. */
static void copy_pieces(const Stretch *pieces, npy_intp count, char *buffer, int inwards)
{
    for (npy_intp i = 0; i < count; i++) {
        memcpy(inwards ? buffer : pieces[i].iov_base, inwards ? pieces[i].iov_base : buffer,
               pieces[i].iov_len);
        buffer += pieces[i].iov_len;
    }
}

static size_t length_of(const Stretch *pieces, npy_intp count)
{
    size_t length = 0;
    for (npy_intp i = 0; i < count; i++)
        length += pieces[i].iov_len;
    return length;
}

/* Fetch a rank's part of a chunk into a buffer, or find this rank's own where it is. */
static char *fetch(Share *share, npy_intp rank, npy_intp chunk, char *buffer, int *error)
{
    Stretch pieces[MOST_PIECES];
    npy_intp count = list_pieces(share, SOURCE, rank, chunk, pieces);
    if (rank != share->rank) {
        Stretch here = {buffer, length_of(pieces, count)};
        *error = move_all(process_vm_readv, (pid_t)share->pids[rank], here, pieces, count);
        return buffer;
    }
    if (count == 1)
        return pieces[0].iov_base;
    copy_pieces(pieces, count, share->buffers[2], 1);
    return share->buffers[2];
}

/* Add up a chunk of all ranks, in their order, into `total`; an errno if that fails. */
static int add_chunk(Share *share, npy_intp chunk, char *total, npy_intp size)
{
    int error = 0;
    Add add_parts = share->itemsize == sizeof(float) ? add_float : add_double;
    char *parts[2] = {fetch(share, 0, chunk, share->buffers[0], &error), NULL};
    for (npy_intp rank = 1; rank < share->ranks && !error; rank++) {
        int is_last = rank == share->ranks - 1;
        share->failed_rank = (int)rank;
        parts[1] = fetch(share, rank, chunk, share->buffers[1], &error);
        char *sum = is_last ? total : share->buffers[0];
        if (!error)
            add_parts(parts, 2, sum, NULL, size, is_last ? share->by : 1);
        parts[0] = sum;
    }
    return error;
}

/* Sum a chunk, and put it where it is wanted; an errno if that fails. */
static int sum_chunk(Share *share, npy_intp chunk)
{
    Stretch pieces[MOST_PIECES];
    npy_intp count = list_pieces(share, SOURCE, share->rank, chunk, pieces);
    size_t length = length_of(pieces, count);
    share->failed_rank = 0;
    if (length > share->room)
        return EMSGSIZE;
    count = list_pieces(share, TARGET, share->rank, chunk, pieces);
    char *total = count == 1 ? pieces[0].iov_base : share->buffers[0];
    int error = add_chunk(share, chunk, total, (npy_intp)(length / share->itemsize));
    if (error == 0 && count > 1)
        copy_pieces(pieces, count, total, 0);
    Stretch here = {total, length};
    for (npy_intp k = 1; share->for_all && k < share->ranks && !error; k++) {
        npy_intp rank = (share->rank + k) % share->ranks; /* not all of them to rank 0 at once */
        count = list_pieces(share, TARGET, rank, chunk, pieces);
        share->failed_rank = (int)rank;
        if (count > 0)
            error = move_all(process_vm_writev, (pid_t)share->pids[rank], here, pieces, count);
    }
    return error;
}

/* sum_share(pids, rank, places, pieces, chunks, for all, buffers, divisor) -> (errno or 0, rank);
 * see `Share` */
static PyObject *sum_share(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    static const int dimensions[] = {1, 0, 3, 2, 2, 0, 0, 0};
    if (given != 8 || !is_plain(args[6], LAYOUT | NPY_ARRAY_WRITEABLE))
        return PyErr_Format(PyExc_TypeError, "eight arguments, with three buffers");
    for (int i = 0; i < 8; i++)
        if (dimensions[i] > 0 && !is_of_words(args[i], dimensions[i]))
            return PyErr_Format(PyExc_TypeError, "argument %d: int64 expected", i);
    PyArrayObject *pids = (PyArrayObject *)args[0], *places = (PyArrayObject *)args[2];
    PyArrayObject *pieces = (PyArrayObject *)args[3], *chunks = (PyArrayObject *)args[4];
    PyArrayObject *buffers = (PyArrayObject *)args[6];
    int type = PyArray_TYPE(buffers);
    if ((type != NPY_FLOAT && type != NPY_DOUBLE) || PyArray_NDIM(buffers) != 2 ||
        PyArray_DIM(buffers, 0) != BUFFERS || PyArray_DIM(places, 1) != 2 ||
        PyArray_DIM(places, 0) != PyArray_DIM(pids, 0) || PyArray_DIM(pieces, 1) != 4 ||
        PyArray_DIM(chunks, 1) != 2 || PyArray_DIM(pids, 0) < 2)
        return PyErr_Format(PyExc_ValueError, "arrays of other shapes or dtypes expected");
    Share share = {
        .pids = PyArray_DATA(pids),
        .places = PyArray_DATA(places),
        .pieces = PyArray_DATA(pieces),
        .chunks = PyArray_DATA(chunks),
        .ranks = PyArray_DIM(pids, 0),
        .arrays = PyArray_DIM(places, 2),
        .count = PyArray_DIM(chunks, 0),
        .rank = PyLong_AsSsize_t(args[1]),
        .for_all = PyObject_IsTrue(args[5]),
        .itemsize = (size_t)PyArray_ITEMSIZE(buffers),
        .room = (size_t)PyArray_STRIDE(buffers, 0),
        .by = PyFloat_AsDouble(args[7]),
    };
    for (int i = 0; i < BUFFERS; i++)
        share.buffers[i] = PyArray_GETPTR2(buffers, i, 0);
    if (PyErr_Occurred())
        return NULL;
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    for (npy_intp chunk = 0; chunk < share.count && !error; chunk++)
        error = sum_chunk(&share, chunk);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("ii", error, share.failed_rank);
}
#else
static PyObject *reach(PyObject *self, PyObject *const *args, Py_ssize_t given) { Py_RETURN_FALSE; }

static PyObject *sum_share(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    Py_RETURN_FALSE;
}
#endif

/* --- the module ------------------------------------------------------------------------------ */

#define METHOD(NAME) {#NAME, (PyCFunction)(void (*)(void))NAME, METH_FASTCALL, NULL}

#define METHOD_OF_ONE(NAME) {#NAME, NAME, METH_O, NULL}

static PyMethodDef methods[] = {
    METHOD(alike),         METHOD(gather),    METHOD(scatter),     METHOD(add),
    METHOD(largest),       METHOD(addresses), METHOD(reach),       METHOD(sum_share),
    METHOD(sum_in_window), METHOD(on_unused), METHOD_OF_ONE(kind), METHOD_OF_ONE(as_bytes),
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "mnx._kernels", "What Python makes longer than its work.", -1, methods,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    import_array();
    look_at_cpu();
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddIntMacro(module, ROOM) < 0 ||
        PyModule_AddIntMacro(module, ROW) < 0)
        Py_CLEAR(module);
    return module;
}
