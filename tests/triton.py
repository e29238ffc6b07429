# SPDX-License-Identifier: MIT
"""What tritonclient[http] does with mpiped: triton.py ADDRESS PICTURE LABELS.

ADDRESS has the pipelines of triton.sh; LABELS is what mpipe makes of PICTURE.
"""
import json
import sys
import time

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

failures = 0


def check(ok, *what):
    global failures
    if not ok:
        failures += 1
        print("FAIL:", *what)


def refused(status, text, call, *args, **kwargs):
    """It raises with this status, and says this."""
    try:
        got = call(*args, **kwargs)
    except InferenceServerException as e:
        check(e.status() == str(status) and text in e.message(),
              f"{call.__name__}: not {status} with \"{text}\" but {e}")
    else:
        check(False, f"{call.__name__}: not {status} with \"{text}\" but {got}")


def put(name, array, datatype, binary=True, shape=None):
    one = triton.InferInput(name, list(shape or array.shape), datatype)
    if shape is None:
        one.set_data_from_numpy(array, binary_data=binary)
    else:  # the client itself would not send what does not fit
        one._raw_data = array.tobytes()
        one._parameters["binary_data_size"] = len(one._raw_data)
    return one


def image(array, **how):
    return [put("image", array, "UINT8", **how)]


def files(*contents):
    return [put("image_bytes", np.array(contents, dtype=object), "BYTES")]


def want(name, **how):
    return [triton.InferRequestedOutput(name, **how)]


def wait_until_ready(c):
    for _ in range(1200):
        try:
            if c.is_server_ready():
                return
        except OSError:  # it does not listen yet
            pass
        time.sleep(0.05)
    sys.exit("FAIL: not ready after 60 s")


def health(c):
    check(c.is_server_live(), "not live")
    for name, ready in ("seg", True), ("pose", False), ("none", False):
        check(c.is_model_ready(name) == ready, f"{name}: ready is not {ready}")
    check(c.is_model_ready("seg", "1"), "seg, version 1: not ready")


def metadata(c):
    server = c.get_server_metadata()
    check(server["name"] == "mpipe", server)
    for extension in ("binary_tensor_data", "model_configuration",
                      "model_repository", "statistics"):
        check(extension in server["extensions"], server)
    for name, head in ("seg", "upernet"), ("depth", "depth"):
        tensors = c.get_model_metadata(name, "1")
        config = c.get_model_config(name)
        check(tensors["versions"] == ["1"], tensors)
        check(tensors["inputs"][0] == {"name": "image", "datatype": "UINT8",
                                       "shape": [-1, -1, -1, 3]}, tensors)
        check(config["max_batch_size"] == 5, config["max_batch_size"])
        check(config["mpipe"]["head"] == head, config["mpipe"])
        # dims are without the pictures, shapes with them
        for there, here in (("inputs", "input"), ("outputs", "output")):
            check([(t["name"], t["shape"]) for t in tensors[there]] ==
                  [(t["name"], [-1] + t["dims"]) for t in config[here]],
                  f"{name}: {here} of metadata and configuration differ")
        types = {t["name"]: t["data_type"] for t in config["input"]}
        check(types == {"image": "TYPE_UINT8", "image_bytes": "TYPE_STRING"},
              types)
    refused(404, "no model", c.get_model_metadata, "none")
    refused(404, "no model", c.get_model_config, "none")
    refused(404, "", c.get_model_metadata, "seg", "2")


def repository(c):
    def state():
        return {m["name"]: m["state"] for m in c.get_model_repository_index()}

    check(state() == {"seg": "READY", "depth": "READY",
                      "pose": "UNAVAILABLE"}, state())
    c.load_model("pose")
    check(c.is_model_ready("pose"), "pose: loaded, but not ready")
    inputs = {t["name"]: t for t in c.get_model_metadata("pose")["inputs"]}
    check(inputs["boxes"] == {"name": "boxes", "datatype": "FP32",
                              "shape": [-1, -1, 4]}, inputs)
    c.load_model("pose")  # what is loaded stays
    c.unload_model("pose")
    check(state()["pose"] == "UNAVAILABLE", state())
    c.unload_model("depth")
    check(not c.is_model_ready("depth"), "depth: unloaded, but ready")
    check(not c.is_server_ready(), "ready without depth")
    refused(503, "depth is not loaded", c.infer, "depth",
            image(np.zeros((1, 8, 8, 3), np.uint8)))
    c.load_model("depth")
    refused(404, "no model", c.load_model, "none")
    refused(404, "no model", c.unload_model, "none")
    refused(501, "parameter config", c.load_model, "pose", config=json.dumps({}))
    refused(501, "configuration", c.load_model, "pose", config=json.dumps({}),
            files={"file:1/x": b"x"})


def results(c, path, labels):
    with open(path, "rb") as f:
        picture = f.read()
    with open(labels, "rb") as f:
        there = f.read()
    # what mpipe writes, and the same as numbers
    got = c.infer("seg", files(picture), outputs=want("labels"),
                  parameters={"encoded": True}, request_id="one")
    check(got.get_response()["id"] == "one", got.get_response())
    check(got.as_numpy("labels")[0] == there, "the file differs from mpipe's")
    classes = c.infer("seg", files(picture)).as_numpy("labels")
    check(classes.dtype == np.uint8 and classes.shape[0] == 1 and
          classes.ndim == 3, classes.shape)

    # pixels, by every way that the client has
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (1, 40, 56, 3), np.uint8)
    first = c.infer("depth", image(pixels)).as_numpy("npy")
    check(first.dtype == np.float32 and first.shape[0] == 1 and
          first.shape[-2:] == (40, 56) and np.isfinite(first).all(),
          first.dtype, first.shape)
    ways = [{"inputs": image(pixels, binary=b),
             "outputs": want("npy", binary_data=o)}
            for b in (True, False) for o in (True, False)]
    ways += [{"inputs": image(pixels), "request_compression_algorithm": a,
              "response_compression_algorithm": a} for a in ("gzip", "deflate")]
    ways += [{"inputs": image(pixels), "priority": 1, "timeout": 60000000},
             {"inputs": image(pixels), "model_version": "1"}]
    for way in ways:
        again = c.infer("depth", **way).as_numpy("npy")
        check(again.shape == first.shape and np.allclose(again, first, 1e-6, 0),
              f"another result: {way}")

    # several pictures in a request, and several requests at once
    three = rng.integers(0, 256, (3, 40, 56, 3), np.uint8)
    alone = [c.infer("seg", image(p[None])).as_numpy("labels") for p in three]
    check((c.infer("seg", image(three)).as_numpy("labels") ==
           np.concatenate(alone)).all(), "three at once differ")
    waiting = [c.async_infer("seg", image(p[None])) for p in three]
    check(all((w.get_result().as_numpy("labels") == a).all()
              for w, a in zip(waiting, alone)), "asynchronous ones differ")
    five = c.infer("seg", files(*[picture] * 5)).as_numpy("labels")
    check((five == np.repeat(classes, 5, 0)).all(), "five files differ")

    # persons: on demand, with boxes and an option of the head
    boxes = np.array([[[1, 2, 30, 36], [20, 3, 30, 30]]], np.float32)
    people = c.infer("pose", image(pixels) + [put("boxes", boxes, "FP32")],
                     parameters={"most_alike": 1.0, "image_id": 7})
    people = json.loads(people.as_numpy("json")[0])
    check("7" in json.dumps(people), people)


def errors(c):
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    good = image(pixels)

    def infer(status, text, inputs=good, model="seg", **how):
        refused(status, text, c.infer, model, inputs, **how)

    infer(404, "no model", model="none")
    infer(404, "", model_version="2")
    infer(400, "neither PNG nor JPEG", files(b"nonsense"))
    infer(400, "the file is empty", files(b""))
    infer(400, "imge", [put("imge", pixels, "UINT8")])
    infer(400, "UINT8", [put("image", pixels.astype(np.float32), "FP32")])
    infer(400, "image", image(pixels[0]))
    infer(400, "image", image(np.zeros((1, 8, 8, 4), np.uint8)))
    infer(400, "image", image(np.zeros((1, 0, 8, 3), np.uint8)))
    infer(400, "image", image(pixels, shape=(1, 8, 9, 3)))
    infer(400, "image", image(pixels, shape=(1, 2**40, 2**40, 3)))
    infer(400, "image", good + files(b"x"))
    infer(400, "image", good + good)
    infer(400, "5", image(np.zeros((6, 8, 8, 3), np.uint8)))
    infer(400, "picture 2: neither PNG nor JPEG",
          files(open(sys.argv[2], "rb").read(), b"nonsense"))
    infer(400, "boxes", good + [put("boxes", np.zeros((1, 1, 4), np.float32),
                                    "FP32")])
    infer(400, "did you mean labels?", outputs=want("lables"))
    infer(400, "did you mean opacity?", parameters={"opacty": 0.5})
    infer(400, "0..1", parameters={"opacity": 9.0})
    infer(400, "priority", priority=10)
    infer(503, "time was over", timeout=1)
    infer(501, "sequence", sequence_id=1, sequence_start=True)
    infer(501, "classification", outputs=want("labels", class_count=3))
    shared = triton.InferInput("image", [1, 8, 8, 3], "UINT8")
    shared.set_shared_memory("region", 192)
    infer(501, "shared memory", [shared])
    shared = triton.InferRequestedOutput("labels")
    shared.set_shared_memory("region", 192)
    infer(501, "shared memory", outputs=[shared])
    for call, *args in (
            (c.get_system_shared_memory_status,),
            (c.register_system_shared_memory, "region", "/region", 192),
            (c.unregister_system_shared_memory,),
            (c.get_cuda_shared_memory_status,),
            (c.register_cuda_shared_memory, "region", b"handle", 0, 192),
            (c.unregister_cuda_shared_memory,),
            (c.get_trace_settings,), (c.get_trace_settings, "seg"),
            (c.update_trace_settings, "seg", {}),
            (c.get_log_settings,), (c.update_log_settings, {})):
        refused(501, "not supported", call, *args)


def statistics(c):
    before = c.get_inference_statistics("seg")["model_stats"][0]
    c.infer("seg", image(np.zeros((2, 8, 8, 3), np.uint8)))
    after = c.get_inference_statistics("seg", "1")["model_stats"][0]

    def more(*path):
        a, b = before, after
        for key in path:
            a, b = a[key], b[key]
        return b - a

    check(more("inference_count") == 2, "not 2 pictures more", after)
    check(1 <= more("execution_count") <= 2, "not 1 or 2 runs more", after)
    check(after["last_inference"] >= before["last_inference"] > 0, after)
    for stage in ("success", "queue", "compute_input", "compute_infer",
                  "compute_output"):
        check(more("inference_stats", stage, "count") == 1, stage, after)
    check(more("inference_stats", "fail", "count") == 0, after)
    check(more("inference_stats", "compute_infer", "ns") > 0, after)
    check(sum(b["compute_infer"]["count"] for b in after["batch_stats"]) ==
          after["execution_count"], after)
    check(after["memory_usage"][0]["byte_size"] > 0, after)
    check({m["name"] for m in c.get_inference_statistics()["model_stats"]} ==
          {"seg", "depth", "pose"}, "statistics of all")
    refused(404, "no model", c.get_inference_statistics, "none")


def main():
    c = triton.InferenceServerClient(sys.argv[1], concurrency=4,
                                     connection_timeout=60, network_timeout=600)
    wait_until_ready(c)
    health(c)
    metadata(c)
    repository(c)
    results(c, sys.argv[2], sys.argv[3])
    errors(c)
    statistics(c)
    c.close()
    if failures:
        sys.exit(f"triton: {failures} failures")
    print("triton: all as it should be")


main()
