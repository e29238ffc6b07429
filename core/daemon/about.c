/* SPDX-License-Identifier: MIT */
/* about.c - what a model is, for who asks. */
#include <stdio.h>
#include <string.h>
#include "about.h"
#include "answer.h"

/* dims: of one picture. */
static json_t *tensor_json(const char *name, const char *type, json_t *dims)
{
    return json_pack("{s:s, s:s, s:o}", "name", name, "datatype", type, "dims",
                     dims);
}

static json_t *inputs_of(const json_t *about)
{
    json_t *list = json_array();

    json_array_append_new(
        list, tensor_json("image", "UINT8", json_pack("[i, i, i]", -1, -1, 3)));
    json_array_append_new(list,
                          tensor_json("image_bytes", "BYTES", json_array()));
    if (json_is_true(json_object_get(about, "uses_boxes")))
        json_array_append_new(
            list, tensor_json("boxes", "FP32", json_pack("[i, i]", -1, 4)));
    return list;
}

/* Of what the worker saw when it tried the head. */
static json_t *outputs_of(const json_t *about)
{
    json_t *list = json_array(), *one;
    size_t i;

    json_array_foreach(json_object_get(about, "outputs"), i, one)
    {
        const char *kind = json_string_value(json_object_get(one, "kind"));
        const char *dtype = json_string_value(json_object_get(one, "dtype"));

        json_array_append_new(
            list, tensor_json(kind, mp_type_name(dtype ? dtype : ""),
                              json_incref(json_object_get(one, "shape"))));
    }
    return list;
}

/* Shapes with the dimension of pictures. */
static json_t *with_shapes(json_t *list)
{
    json_t *one, *shape;
    size_t i;

    json_array_foreach(list, i, one)
    {
        shape = json_copy(json_object_get(one, "dims"));
        json_array_insert_new(shape, 0, json_integer(-1));
        json_object_set_new(one, "shape", shape);
        json_object_del(one, "dims");
    }
    return list;
}

json_t *mp_metadata(const char *model, const json_t *about)
{
    return json_pack("{s:s, s:[s], s:s, s:o, s:o}", "name", model, "versions",
                     "1", "platform", "mpipe", "inputs",
                     with_shapes(inputs_of(about)), "outputs",
                     with_shapes(outputs_of(about)));
}

/* Types by the names of the model configuration. */
static json_t *with_types(json_t *list)
{
    char name[32];
    json_t *one;
    size_t i;

    json_array_foreach(list, i, one)
    {
        const char *type = json_string_value(json_object_get(one, "datatype"));

        snprintf(name, sizeof name, "TYPE_%s",
                 strcmp(type, "BYTES") ? type : "STRING");
        json_object_set_new(one, "data_type", json_string(name));
        json_object_del(one, "datatype");
    }
    return list;
}

/* A client that gives all inputs gives pixels. */
static json_t *with_optional(json_t *list)
{
    json_t *one;
    size_t i;

    json_array_foreach(list, i, one) if (i)
        json_object_set_new(one, "optional", json_true());
    return list;
}

/* Triton's names where there are such, and what the worker said. */
json_t *mp_model_config(const char *model, const json_t *about,
                        int32_t pictures)
{
    return json_pack("{s:s, s:s, s:s, s:i, s:o, s:o, s:O}", "name", model,
                     "platform", "mpipe", "backend", "mpipe", "max_batch_size",
                     (int)pictures, "input",
                     with_optional(with_types(inputs_of(about))), "output",
                     with_types(outputs_of(about)), "mpipe", about);
}
