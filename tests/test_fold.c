/* SPDX-License-Identifier: MIT */
/*
 * test_fold.c - what is left of the networks after folding and fusing. The
 * expected number of convolutions is counted from the key list: every weight
 * of rank 2 or more that is multiplied with something that depends on the
 * picture, once per step.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "backbone/backbone.h"
#include "conf.h"
#include "device.h"
#include "fold.h"
#include "golden.h"
#include "graph_impl.h"
#include "make_weights.h"
#include "module.h"
#include "session.h"

static char folder[] = "/tmp/mpipe-fold-XXXXXX";
static char path[300];

struct net {
    struct mp_opened o;
    struct mp_arena arena;
    struct mp_weights *w;
    struct mp_graph *g;
    struct mp_session *s;
    struct mp_conf *conf;
    void *head_conf;
};

static void open_net(struct net *n, const char *keys, const char *head_name,
                     int64_t side)
{
    const struct mp_plugin *head = NULL;
    struct mp_features f = {.view_h = (int32_t)side, .view_w = (int32_t)side};
    struct mp_error err = {0};
    struct mp_arch arch;
    mp_node x;

    memset(n, 0, sizeof *n);
    snprintf(path, sizeof path, "%s/net.safetensors", folder);
    ck_assert_msg(!make_weights(golden_path("keys/%s.json", keys), path, &err),
                  "%s", err.text);
    ck_assert_msg(!mp_head_find(&head, head_name, &err), "%s", err.text);
    n->conf = mp_conf_new();
    n->head_conf = calloc(1, head->conf_size);
    ck_assert(!mp_conf_section(n->conf, head_name, head->options, n->head_conf,
                               &err));
    ck_assert_msg(!mp_weights_open(&n->w, path, &err), "%s", err.text);
    unlink(path);
    ck_assert(!mp_device_open(&n->o, "cpu", MP_PREC_FP32, 0, &err));
    n->arena.backend = n->o.backend;
    n->arena.device = n->o.device;
    n->g = mp_graph_new(n->w);
    ck_assert(!mp_backbone_probe(&arch, n->g, &err));
    x = mp_float(n->g, mp_input(n->g, "pixels", MP_U8, 4,
                                (int64_t[]){1, side, side, 3}));
    mp_backbone_build(n->g, &arch, head->input(n->head_conf, n->g, x), &f);
    mp_output(n->g, "map", head->build(n->head_conf, n->g, &f));
    ck_assert_msg(!mp_session_new(&n->s, &n->arena, n->g, MP_F32, &err), "%s",
                  err.text);
}

static void close_net(struct net *n)
{
    mp_session_free(n->s);
    mp_arena_free(&n->arena);
    n->o.backend->close(n->o.device);
    mp_graph_free(n->g);
    mp_weights_close(n->w);
    mp_conf_free(n->conf);
    free(n->head_conf);
}

static int has(const char *name, const char *part)
{
    return strstr(name, part) != NULL;
}

/* Of constants only: step vectors, prompts and what becomes of them; dead. */
static int is_folded(const char *name)
{
    return has(name, "emb_layers") || has(name, "attn2.to_k") ||
           has(name, "attn2.to_v") || has(name, "text_adapter") ||
           has(name, "time_embed") || has(name, "post_quant") ||
           has(name, "encoder_vq.decoder") || has(name, "cross_unet") ||
           has(name, "auxiliary_head") || has(name, "meta_prompts") ||
           has(name, "deconv_layers");
}

static size_t expected(const struct net *n, size_t steps, size_t products)
{
    size_t count = products;

    for (size_t i = 0; i < mp_weights_count(n->w); i++) {
        const struct mp_weight_info *w = mp_weights_at(n->w, i);
        size_t len = strlen(w->name);

        if (w->ndim < 2 || len < 7 || strcmp(w->name + len - 7, ".weight") ||
            is_folded(w->name))
            continue;
        if (has(w->name, "diffusion_model.out."))
            count += steps - 1; /* between the steps */
        else
            count += has(w->name, "diffusion_model") ? steps : 1;
    }
    return count;
}

START_TEST(segmentation)
{
    struct net n;

    open_net(&n, "tiny_seg", "upernet", 64);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_BATCH_NORM), 0);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_RESHAPE), 0);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_SLICE), 0);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_ACT), 0);
    /* pixels to -1..1: two products, two sums; pyramid: three laterals */
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_MUL), 2);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_ADD), 2 + 3);
    /* each map times the prompts is one more 1x1 convolution; the two of maps
     * that are joined are sums, of four and of five */
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_CONV2D),
                      expected(&n, 3, 4) + 3 + 4);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_CONCAT), 12 * 3); /* skips */
    /* those before 3x3 convolutions are gone; the pyramid's three sums stay,
     * and its pools of 3 and 6, which 2 x 2 does not enlarge */
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_RESIZE), 3 + 2);
    /* 16 transformers, self and cross, 3 steps; and the VAE's */
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_ATTENTION), 16 * 2 * 3 + 1);
    close_net(&n);
}
END_TEST

START_TEST(depth)
{
    struct net n;

    open_net(&n, "tiny_depth", "depth", 64);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_BATCH_NORM), 0);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_RESHAPE), 0);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_ACT), 0);
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_CONV2D), expected(&n, 3, 1));
    ck_assert_uint_eq(mp_session_count(n.s, MP_OP_DECONV2D), 1 + 2 + 3 + 3);
    close_net(&n);
}
END_TEST

/* Of weights that batch norm scales, parts are multiplied, not parts taken of
 * the product. */
START_TEST(parts_of_weights)
{
    struct mp_error err = {0};
    struct mp_net folded;
    struct net n;
    int parts = 0;

    open_net(&n, "tiny_seg", "upernet", 64);
    ck_assert(!mp_net_make(&folded, n.g, n.arena.backend, MP_F32, &err));
    for (size_t i = 1; i < folded.nnode; i++) {
        if (!folded.live[i] || folded.node[i].op != MP_OP_SLICE)
            continue;
        ck_assert_int_eq(folded.node[folded.node[i].in[0]].op, MP_OP_WEIGHT);
        parts++;
    }
    ck_assert_int_ge(parts, 4 + 5); /* the maps that are joined */
    mp_net_free(&folded);
    close_net(&n);
}
END_TEST

/* Twice the same shape: nothing is packed or computed twice, and the results
 * have the same bits. */
START_TEST(shared_constants)
{
    struct mp_error err = {0};
    struct mp_session *again = NULL;
    struct mp_tensor t;
    uint8_t *pixels = malloc(64 * 64 * 3);
    float *a, *b;
    struct net n;
    size_t bytes;

    open_net(&n, "tiny_seg", "upernet", 64);
    for (int i = 0; i < 64 * 64 * 3; i++)
        pixels[i] = (uint8_t)(i * 31 + i / 777);
    mp_session_output(n.s, 0, &t);
    bytes = (size_t)mp_shape_count(t.ndim, t.dim) * sizeof *a;
    a = malloc(bytes);
    b = malloc(bytes);
    ck_assert(!mp_session_run(n.s, (const void *const[]){pixels},
                              (void *const[]){a}, &err));
    ck_assert_msg(!mp_session_new(&again, &n.arena, n.g, MP_F32, &err), "%s",
                  err.text);
    ck_assert(!mp_session_run(again, (const void *const[]){pixels},
                              (void *const[]){b}, &err));
    ck_assert(!memcmp(a, b, bytes));
    free(a);
    free(b);
    free(pixels);
    mp_session_free(again);
    close_net(&n);
}
END_TEST

START_TEST(dump)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    struct net n;

    open_net(&n, "tiny_seg", "upernet", 64);
    mp_session_dump(n.s, f);
    fclose(f);
    ck_assert_ptr_nonnull(strstr(text, "conv2d:"));
    ck_assert_ptr_nonnull(strstr(text, "+residual"));
    ck_assert_ptr_nonnull(strstr(text, "group_norm:"));
    ck_assert_ptr_nonnull(strstr(text, "+silu"));
    ck_assert_ptr_nonnull(strstr(text, "meta_prompts(f32 12x64)"));
    free(text);
    close_net(&n);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fold");
    TCase *t = tcase_create("fold");
    SRunner *r = srunner_create(s);
    int failed;

    if (!mkdtemp(folder))
        return 99;
    tcase_set_timeout(t, 120);
    tcase_add_test(t, segmentation);
    tcase_add_test(t, depth);
    tcase_add_test(t, parts_of_weights);
    tcase_add_test(t, shared_constants);
    tcase_add_test(t, dump);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_ENV);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    unlink(path);
    rmdir(folder);
    return failed != 0;
}
