/* SPDX-License-Identifier: MIT */
/* make_weights KEYS.json OUT.safetensors */
#include <stdio.h>
#include "make_weights.h"

int main(int argc, char **argv)
{
    struct mp_error err = {0};

    if (argc != 3) {
        fprintf(stderr, "usage: make_weights KEYS.json OUT.safetensors\n");
        return 2;
    }
    if (make_weights(argv[1], argv[2], &err)) {
        fprintf(stderr, "make_weights: %s\n", err.text);
        return 1;
    }
    return 0;
}
