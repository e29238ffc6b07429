/* SPDX-License-Identifier: MIT */
/*
 * about.h - the Open Inference Protocol, version 2: what a model is. Threads:
 * no state.
 */
#ifndef CORE_DAEMON_ABOUT_H
#define CORE_DAEMON_ABOUT_H

#include <jansson.h>
#include <stdint.h>

/* GET /v2/models/M, and its /config, of what a worker said of it. New.
 * pictures: most of a request. */
json_t *mp_metadata(const char *model, const json_t *about);
json_t *mp_model_config(const char *model, const json_t *about,
                        int32_t pictures);

#endif
