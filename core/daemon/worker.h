/* SPDX-License-Identifier: MIT */
/*
 * worker.h - the process that owns a device: it loads pipelines and runs what
 * the front asks for, pictures of one size together.
 *
 * It reads MP_LINK_FD until the front is gone. A thread receives, a few decode
 * pictures and encode results, the calling one has the network look. It is
 * expected to die of what heads and drivers do; the front then knows from the
 * ledger whose fault it was.
 *
 * Of a picture {"pipeline": number, "offset", "bytes" (in the blob), "width"
 * and "height" (of pixels; without: a PNG or JPEG), "name" (stem), "image_id",
 * "options" {key: text}, "formats" (words), "plain", "accept", "boxes"
 * [[x, y, w, h, score], ...]}, all but the first three optional, it makes
 * {"results": [{"kind", "suffix", "dtype", "dim", "offset", "bytes"}, ...],
 * "seconds": {"read", "network", "merge", "write"}, "runs": [[views, share of
 * the run, seconds of it], ...] of the network}.
 */
#ifndef CORE_DAEMON_WORKER_H
#define CORE_DAEMON_WORKER_H

#include "mpipe/base.h"

/* 0: the front is gone; else the device has failed, or the checkpoint. Main
 * thread. */
int mp_worker_run(struct mp_error *err);

#endif
