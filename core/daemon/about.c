/* SPDX-License-Identifier: MIT */
/* about.c - what a model is, for who asks. */
#include <stdio.h>
#include <string.h>
#include "about.h"
#include "answer.h"

static json_t *tensor_json(const char *name, const char *type,
                           const char *shape)
{
    return json_pack("{s:s, s:s, s:o}", "name", name, "datatype", type, "shape",
                     json_loads(shape, 0, NULL));
}

static json_t *inputs_json(const json_t *about)
{
    json_t *list = json_array();

    json_array_append_new(list,
                          tensor_json("image", "UINT8", "[1, -1, -1, 3]"));
    json_array_append_new(list, tensor_json("image_bytes", "BYTES", "[1]"));
    if (json_is_true(json_object_get(about, "uses_boxes")))
        json_array_append_new(list, tensor_json("boxes", "FP32", "[-1, 4]"));
    return list;
}

/* Of what the worker saw when it tried the head. */
static json_t *outputs_json(const json_t *about)
{
    json_t *list = json_array(), *one;
    size_t i;

    json_array_foreach(json_object_get(about, "outputs"), i, one)
    {
        const char *dtype = json_string_value(json_object_get(one, "dtype"));

        json_array_append_new(list, json_pack("{s:O, s:s, s:O}", "name",
                                              json_object_get(one, "kind"),
                                              "datatype", mp_type_name(dtype),
                                              "shape",
                                              json_object_get(one, "shape")));
    }
    return list;
}

json_t *mp_metadata(const char *model, const json_t *about)
{
    return json_pack("{s:s, s:[s], s:s, s:o, s:o}", "name", model, "versions",
                     "1", "platform", "mpipe", "inputs", inputs_json(about),
                     "outputs", outputs_json(about));
}

/* Triton's names where there are such, and what the worker said. */
json_t *mp_model_config(const char *model, const json_t *about)
{
    json_t *inputs = inputs_json(about), *outputs = outputs_json(about);
    json_t *lists[] = {inputs, outputs}, *one;
    size_t i;

    for (int k = 0; k < 2; k++)
        json_array_foreach(lists[k], i, one)
        {
            const char *type =
                json_string_value(json_object_get(one, "datatype"));
            char name[32];

            snprintf(name, sizeof name, "TYPE_%s",
                     strcmp(type, "BYTES") ? type : "STRING");
            json_object_set_new(one, "data_type", json_string(name));
            json_object_set(one, "dims", json_object_get(one, "shape"));
            json_object_del(one, "datatype");
            json_object_del(one, "shape");
        }
    return json_pack("{s:s, s:s, s:s, s:i, s:o, s:o, s:O}", "name", model,
                     "platform", "mpipe", "backend", "mpipe", "max_batch_size",
                     0, "input", inputs, "output", outputs, "mpipe", about);
}
