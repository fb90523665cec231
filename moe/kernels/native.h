/* What moe/kernels/native.c and moe/kernels/attention.c share. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t size;

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define SMALL 16384       /* elements below which waking the other threads costs more than it saves */
#define ROUND 12582912.0f /* added to a float, it leaves a whole number in the last bits */

/* 2^n for a whole n in [-126, 127], given as n + ROUND */
static inline float power_of_two(float rounded) {
    union {
        float value;
        uint32_t bits;
    } power = {rounded};
    power.bits = (power.bits + 127) << 23;
    return power.value;
}
