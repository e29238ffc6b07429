/* SPDX-License-Identifier: MIT */
/*
 * mpipe/plugin.h - a task head.
 *
 * A head is one shared object NAME.so exporting one constant:
 *
 *     MP_PLUGIN(NAME) = {.abi = MP_PLUGIN_ABI,
 *                        .size = sizeof(struct mp_plugin), ...};
 *
 * abi and size are checked before any of its code runs. It appends its network
 * to the graph, says which parts of a picture the network is to see, how the
 * answers become one, and what is written. It never sees files, devices,
 * sockets or threads, and keeps no state outside its configuration.
 *
 * Order: check once; for each shape input, build; for each picture views,
 * (network on every view), merge for each group of views, decode. check, input,
 * build and merge run alone; views and decode may run for several pictures at
 * once.
 *
 * See mpipe_plugin(3) for a complete example.
 */
#ifndef MPIPE_PLUGIN_H
#define MPIPE_PLUGIN_H

#include "mpipe/graph.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MP_PLUGIN_ABI 2

/* The name under which libltdl finds it. */
#define MP_PLUGIN(head)                                                        \
    extern const struct mp_plugin head##_LTX_mp_plugin;                        \
    const struct mp_plugin head##_LTX_mp_plugin

struct mp_box {        /* around an object; not clipped to the picture */
    double x, y, w, h; /* source pixels; x, y: its left upper corner */
    double score;      /* of the detector, 1 for annotations */
};

struct mp_sink;

struct mp_image {             /* a source picture; borrowed during the call */
    const char *name;         /* file name without folder and suffix */
    int32_t width, height;    /* pixels */
    const uint8_t *rgb;       /* height x width x 3, row-major */
    const char *id;           /* the picture's, as JSON: a number or a "text" */
    const struct mp_box *box; /* heads with uses_boxes: of [pipeline] boxes, in
                                 the file's order; without: the picture */
    size_t nbox;
};

struct mp_view { /* one look of the network at a source picture */
    int32_t scaled_w, scaled_h; /* the picture is resized to this first (u8
                                   bilinear; its own size: untouched) */
    int32_t x, y, w, h;         /* then this box is cut out, in scaled pixels */
    int32_t warp;               /* nonzero: none of that, but w x h pixels are
                                   drawn through matrix: u8 bilinear, black
                                   outside the picture */
    float matrix[6];            /* 2 x 3, from source to view pixels */
    int32_t mirror;             /* nonzero: left and right swapped at last */
    int32_t group; /* views that are merged together: 0 for the first view,
                      then the same or one more */
};

/* Class names and colours, as chosen by [pipeline] classes. */
struct mp_classes {
    const char *name;
    size_t count;
    const char *const *names;
    const uint8_t (*color)[3];
    const int32_t *label_id; /* of each class in the data set's own label maps,
                                0..65535, or NULL: they have none, and mpiped
                                has no results of a kind "ids" */
};

struct mp_features { /* what build() is given */
    mp_node map[4];  /* N x H x W x C, finest first, last refinement step */
    mp_node prompts; /* T x C, the (adapted) prompts of the last step */
    mp_node latents; /* N x h x w x 4: the VAE's, before the first step */
    int32_t view_h, view_w;           /* size of the view, pixels */
    const struct mp_classes *classes; /* NULL: none are asked for */
};

/* How well each prompt fits each place: all four maps joined at the size of the
 * finest, multiplied with the prompts; N x H x W x T. The encoder of the
 * published depth network: weights encoder.layer1 .. layer4, .out_layer. */
MP_API mp_node mp_prompt_maps(struct mp_graph *g, const struct mp_features *f);

/* What merge() is to put together. */
struct mp_merge {
    const struct mp_image *img;
    const struct mp_view *view; /* of one group */
    const mp_node *out;         /* 1 x h x w x C of each view */
    size_t nview;
    int32_t group, ngroup; /* which, of how many */
    mp_node sum; /* what was returned for the group before; none at first */
    const struct mp_sink *want; /* tells what is asked for */
};

/* A result tensor, row-major; borrowed during the call. */
struct mp_tensor {
    const char *name;    /* as given to mp_output */
    enum mp_dtype dtype; /* MP_F32 or MP_I32 */
    int ndim;
    int64_t dim[MP_RANK];
    const void *data;
};

struct mp_png_text {
    const char *key, *value; /* Latin-1; key 1..79 characters */
};

struct mp_png {
    int32_t width, height;
    int channels, bits; /* 1 or 3; 8 or 16 */
    const void *px;     /* row-major; bits 16: uint16_t in host order */
    const uint8_t
        *palette; /* ncolor RGB triples (channels 1, bits 8) or NULL */
    int ncolor;
    const struct mp_png_text *text;
    size_t ntext;
};

/* Where results go. The sink names the file, encodes and writes it; what is
 * given is borrowed during the call. kind must be one of the head's formats;
 * a kind that the user did not ask for is skipped. */
MP_API int mp_sink_wants(const struct mp_sink *s, const char *kind);
MP_API const struct mp_classes *mp_sink_classes(const struct mp_sink *s);
MP_API int mp_sink_png(struct mp_sink *s, const char *kind,
                       const struct mp_png *png, struct mp_error *err);
MP_API int mp_sink_npy(struct mp_sink *s, const char *kind,
                       const struct mp_tensor *t, struct mp_error *err);
MP_API int mp_sink_json(struct mp_sink *s, const char *kind, const char *text,
                        struct mp_error *err);

/* 256 RGB triples, from red (0) over yellow, green, blue to violet (255). */
MP_API const uint8_t (*mp_colormap_rainbow(void))[3];

struct mp_plugin {
    uint32_t abi;        /* MP_PLUGIN_ABI: raised when a field changes meaning
                            or place */
    uint32_t size;       /* sizeof(struct mp_plugin) as compiled; fields are
                            added at the end */
    const char *name;    /* [a-z][a-z0-9]*: [pipeline] head, INI section, and
                            file name */
    const char *summary; /* one line, no full stop */
    const char
        *formats;         /* kinds of results, blank-separated; the first ones
                             up to ':' are the default: "labels overlay : probs" */
    int32_t uses_classes; /* nonzero: [pipeline] classes is needed */
    int32_t uses_boxes;   /* nonzero: [pipeline] boxes is read */
    const char *joined; /* a kind that is a JSON array for every picture; those
                           of a run are put together in OUT/joined_as.json.
                           NULL: none */
    const char *joined_as;
    const struct mp_option *options; /* its INI section; NULL name ends it */
    size_t conf_size;                /* mpipe allocates, fills and owns it */
    /* Optional: rules that span options. */
    int (*check)(const void *conf, struct mp_error *err);
    /* The views of a picture: their number, at most cap of them stored;
     * called again with room if there are more. 0: nothing to see, and no
     * results. Negative: an error. */
    long (*views)(const void *conf, const struct mp_image *img,
                  struct mp_view *view, size_t cap, struct mp_error *err);
    /* From pixels (f32 0..255, N x view_h x view_w x 3) to what the VAE
     * encoder sees: N x H x W x 3, -1..1. Sides of at least 8 pixels. */
    mp_node (*input)(const void *conf, struct mp_graph *g, mp_node pixels);
    /* The head itself: one map per view, N x h x w x C. */
    mp_node (*build)(const void *conf, struct mp_graph *g,
                     const struct mp_features *f);
    /* The answers of a group of views as a graph, so that it runs on the
     * device. In the last group: calls mp_output for each result. In the
     * others: returns what the next one needs, as a running sum. NULL: the
     * results are the maps themselves, one H x W x C for each view. */
    mp_node (*merge)(const void *conf, struct mp_graph *g,
                     const struct mp_merge *m);
    /* Results, in the order of mp_output or of the views, into files; n is 0
     * where there were no views. */
    int (*decode)(const void *conf, const struct mp_image *img,
                  const struct mp_tensor *result, size_t n,
                  struct mp_sink *sink, struct mp_error *err);
    /* Optional: what a reader of the results must know, such as scales and
     * units, as a JSON object for run.json. As snprintf: writes at most size
     * bytes, returns how many the whole text has. */
    int (*describe)(const void *conf, char *json, size_t size);
};

#ifdef __cplusplus
}
#endif
#endif
