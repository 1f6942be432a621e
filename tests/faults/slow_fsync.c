/* Preloaded into a worker: delays fsync and fdatasync.
 *
 * The file named by FAULTS_FSYNC holds the delay in milliseconds, or "hung": calls then wait until
 * it changes. Without the file there is no delay. A waiting process can be killed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void pause_for(long milliseconds) {
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0) {
    }
}

static void wait_as_configured(void) {
    const char *name = getenv("FAULTS_FSYNC");
    while (name != NULL) {
        char text[16] = "";
        FILE *file = fopen(name, "r");
        if (file == NULL) {
            return;
        }
        if (fgets(text, sizeof text, file) == NULL) {
            text[0] = '\0';
        }
        fclose(file);
        if (strncmp(text, "hung", 4) != 0) {
            pause_for(atol(text));
            return;
        }
        pause_for(10);
    }
}

int fsync(int descriptor) {
    static int (*original)(int);
    if (original == NULL) {
        original = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    }
    wait_as_configured();
    return original(descriptor);
}

int fdatasync(int descriptor) {
    static int (*original)(int);
    if (original == NULL) {
        original = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    }
    wait_as_configured();
    return original(descriptor);
}
