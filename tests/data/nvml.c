/* Stands in for NVIDIA's library: what it says stands in a file of lines, a key and numbers each. */
#include <stdio.h>
#include <string.h>
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } process;
typedef struct { unsigned pid; unsigned long long time; unsigned sm, memory, encoder, decoder; } use;
typedef struct { unsigned gpu, memory; } utilisation;

/* The n-th line of the state that begins with the key: how many numbers it holds. */
static int line(const char *key, int n, unsigned long long *a, unsigned long long *b, unsigned long long *c)
{
    char text[256], word[64];
    FILE *file = fopen(STATE, "r");
    int found = 0;
    while (file && fgets(text, sizeof text, file)) {
        unsigned long long x = 0, y = 0, z = 0;
        int count = sscanf(text, "%63s %llu %llu %llu", word, &x, &y, &z);
        if (count > 1 && !strcmp(word, key) && n-- == 0) { found = count - 1; *a = x; *b = y; *c = z; break; }
    }
    if (file) fclose(file);
    return found;
}

static int number(const char *key, unsigned long long *value)
{
    unsigned long long y, z;
    return line(key, 0, value, &y, &z) ? 0 : 3;
}

int nvmlInit_v2(void)
{
#ifdef REFUSES
    return 9;
#else
    return 0;
#endif
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = (void *)1; return strcmp(uuid, UUID) ? 6 : 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)1; return index ? 2 : 0; }

#ifdef OLD
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *v) { return number("reasons", v); }
#define LIST nvmlDeviceGetComputeRunningProcesses_v2
#else
int nvmlDeviceGetCurrentClocksEventReasons(void *d, unsigned long long *v) { return number("reasons", v); }
int nvmlDeviceGetTotalEccErrors(void *d, int kind, int counter, unsigned long long *v)
{
    return kind == 1 && counter == 0 ? number("errors", v) : 2;
}
int nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length)
{
    return snprintf(name, length, "/bin/job%u", pid) < 0;
}
int nvmlDeviceGetPowerUsage(void *d, unsigned *v)
{
    unsigned long long x;
    int status = number("milliwatts", &x);
    *v = x;
    return status;
}
int nvmlDeviceGetUtilizationRates(void *d, utilisation *v)
{
    unsigned long long x = 0;
    int status = number("utilisation", &x);
    v->gpu = x;
    return status;
}
int nvmlDeviceGetProcessUtilization(void *d, use *rows, unsigned *count, unsigned long long since)
{
    unsigned long long pid, sm, time;
    unsigned n = 0;
    if (!line("knows-use", 0, &pid, &sm, &time)) return 3;
    for (; line("use", n, &pid, &sm, &time); n++)
        if (n < *count) rows[n] = (use){ pid, since + time, sm, 0, 0, 0 };
    if (n == 0) return 6;
    int status = n > *count ? 7 : 0;
    *count = n;
    return status;
}
#define LIST nvmlDeviceGetComputeRunningProcesses_v3
#endif

int nvmlDeviceGetClockInfo(void *d, int kind, unsigned *v)
{
    unsigned long long x;
    int status = kind == 1 ? number("mhz", &x) : 2;
    *v = x;
    return status;
}
int LIST(void *d, unsigned *count, process *rows)
{
    unsigned long long pid, part, unused;
    unsigned n = 0, numbers;
    for (; (numbers = line("process", n, &pid, &part, &unused)); n++)
        if (n < *count) rows[n] = (process){ pid, 1 << 20, numbers > 1 ? (unsigned)part : 0xffffffff, 0xffffffff };
    int status = n > *count ? 7 : 0;
    *count = n;
    return status;
}
