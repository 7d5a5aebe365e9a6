/* steps.c: what the extension does at the steps of steps.h. Part of a build with SHMRPC_STEPS only.
 *
 *   SHMRPC_STEP=publish_tail_stored:3:kill     the third passage of that step is the last; several plans: a comma between
 *
 * A step is a name or a number; 0 for the count: every passage. Actions: `exit` (at once, with status 86), `kill`, `stop`
 * (until SIGCONT), `yield`, `delay` (a millisecond). The variable is read when the module is loaded.
 */
#define _GNU_SOURCE
#include "binding.h"
#include "steps.h"

#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_STATUS = 86, MOST_PLANS = 16, NAME_BYTES = 32 };

struct plan {
    int step;
    unsigned long long passage; /* which one of those that come; 0: every one */
    void (*act)(void);
};

static const char *const names[SHM_STEPS] = {
    "none",
#define STEP_NAME(name) #name,
    SHM_EACH_STEP(STEP_NAME)
#undef STEP_NAME
};

/* The GIL is held at every step, so these are plain. */
static unsigned long long passages[SHM_STEPS];
static struct plan plans[MOST_PLANS];
static int planned;

static void act_exit(void)
{
    _exit(EXIT_STATUS);
}

static void act_kill(void)
{
    raise(SIGKILL);
}

static void act_stop(void)
{
    raise(SIGSTOP);
}

static void act_yield(void)
{
    sched_yield();
}

static void act_delay(void)
{
    const struct timespec millisecond = {.tv_nsec = 1000000};
    nanosleep(&millisecond, NULL);
}

static const struct {
    const char *name;
    void (*act)(void);
} actions[] = {{"exit", act_exit}, {"kill", act_kill}, {"stop", act_stop}, {"yield", act_yield}, {"delay", act_delay}};

void shm_step(enum shm_step_name step)
{
    passages[step]++;
    for (int i = 0; i < planned; i++)
        if (plans[i].step == (int)step && (plans[i].passage == 0 || plans[i].passage == passages[step]))
            plans[i].act();
}

static int step_of(const char *name)
{
    for (int step = 1; step < SHM_STEPS; step++)
        if (strcmp(name, names[step]) == 0)
            return step;
    char *end;
    long number = strtol(name, &end, 10);
    return *end == 0 && number > 0 && number < SHM_STEPS ? (int)number : 0;
}

/* Reads `step:count:action` into *plan, counting from what was passed by now. */
static bool read_plan(const char *text, struct plan *plan)
{
    char step[NAME_BYTES], action[NAME_BYTES];
    unsigned long long count;
    int end = 0;
    if (sscanf(text, "%31[a-z0-9_]:%llu:%31[a-z]%n", step, &count, action, &end) != 3 || (text[end] && text[end] != ','))
        return false;
    *plan = (struct plan){.step = step_of(step)};
    plan->passage = count ? passages[plan->step] + count : 0;
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (strcmp(action, actions[i].name) == 0)
            plan->act = actions[i].act;
    return plan->step && plan->act;
}

static int plan_all(const char *text)
{
    planned = 0;
    for (const char *at = text; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        if (planned == MOST_PLANS || !read_plan(at, &plans[planned])) {
            planned = 0;
            PyErr_Format(PyExc_ValueError, "SHMRPC_STEP is step:count:action, at most %d with commas between, not %s",
                         MOST_PLANS, text);
            return -1;
        }
        planned++;
    }
    return 0;
}

static PyObject *plan_steps(PyObject *Py_UNUSED(module), PyObject *text)
{
    const char *plain = PyUnicode_AsUTF8(text);
    return plain && plan_all(plain) == 0 ? Py_NewRef(Py_None) : NULL;
}

static PyObject *steps(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObject *passed = PyDict_New();
    for (int step = 1; passed && step < SHM_STEPS; step++) {
        PyObject *count = PyLong_FromUnsignedLongLong(passages[step]);
        if (!count || PyDict_SetItemString(passed, names[step], count) < 0)
            Py_CLEAR(passed);
        Py_XDECREF(count);
    }
    return passed;
}

static PyMethodDef step_functions[] = {
    {"steps", steps, METH_NOARGS, PyDoc_STR("steps() -> {name: passages}: every step, in the order of their numbers.")},
    {"plan_steps", plan_steps, METH_O,
     PyDoc_STR("plan_steps(text)\n\nWhat SHMRPC_STEP would say, counted from now on; instead of what was planned. '': nothing.")},
    {NULL, NULL, 0, NULL},
};

int add_steps(PyObject *module)
{
    if (plan_all(getenv("SHMRPC_STEP")) < 0)
        return -1;
    return PyModule_AddFunctions(module, step_functions);
}
